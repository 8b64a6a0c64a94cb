"""The RPCs about datasets: for whoever operates a tenant, and of that tenant's alone."""

import itertools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from attune.access import CALLER
from attune.aggregator.datasets import (
    Difference,
    Portrait,
    Workshop,
    difference,
    find_dataset,
    find_name,
    names_of,
    portray,
    verify,
    without_folder,
)
from attune.aggregator.recipe import load_recipe
from attune.aggregator.trust.explain import MOST, Missing, Weighed, explain
from attune.aggregator.turns import Turns
from attune.chat.limits import MAX_ID_CHARACTERS, check_length
from attune.clock import now_unix_ms
from attune.errors import InvalidInput, NotFound
from attune.ids import check_name
from attune.lake.dataset import Manifest, list_datasets
from attune.personas import Personas
from attune.v1 import dataset_pb2, dataset_pb2_grpc

MOST_RECIPES = 20
MOST_LISTED = 1000
_LISTED = 100
_ENGINES = {
    dataset_pb2.BuildDatasetsRequest.ENGINE_UNSPECIFIED: "duckdb",
    dataset_pb2.BuildDatasetsRequest.ENGINE_DUCKDB: "duckdb",
    dataset_pb2.BuildDatasetsRequest.ENGINE_SPARK: "spark",
}


@dataclass(eq=False)
class DatasetService(dataset_pb2_grpc.DatasetServiceServicer):
    """Reads the datasets' folder, and builds beside the aggregator: what is built twice is there once."""

    workshop: Workshop
    personas: Personas
    builds: Turns = field(default_factory=lambda: Turns("builds", 1))
    looks: Turns = field(default_factory=lambda: Turns("looks at datasets", 2))

    async def BuildDatasets(
        self, request: dataset_pb2.BuildDatasetsRequest, context: Any
    ) -> AsyncIterator[dataset_pb2.BuildDatasetsResponse]:
        if request.engine not in _ENGINES:
            raise InvalidInput(
                f"there is no engine {request.engine}; there are DuckDB (1) and Spark (2)", field="engine"
            )
        if len(request.recipes) > MOST_RECIPES:
            raise InvalidInput(f"{len(request.recipes)} recipes; at most {MOST_RECIPES}", field="recipes")
        if request.persona:
            check_name(request.persona, "persona")
        persona = self.personas.find(CALLER.get().tenant, request.persona)
        names = [
            check_name(name, "recipes") for name in dict.fromkeys(request.recipes)
        ] or self.workshop.rules.recipes_of(persona.name)
        recipes = [load_recipe(name) for name in names]

        def build(tell: Callable[[dataset_pb2.BuildDatasetsResponse], None]) -> None:
            tell(dataset_pb2.BuildDatasetsResponse(datasets=len(recipes)))
            made = self.workshop.build(persona, recipes, engine=_ENGINES[request.engine], now_unix_ms=now_unix_ms())
            for dataset, is_new in made:
                built = dataset_pb2.BuiltDataset(dataset=_told(dataset.manifest), is_new=is_new)
                tell(dataset_pb2.BuildDatasetsResponse(built=built))

        async for part in self.builds.follow(build):
            yield part

    async def ListDatasets(
        self, request: dataset_pb2.ListDatasetsRequest, context: Any
    ) -> dataset_pb2.ListDatasetsResponse:
        if request.limit > MOST_LISTED:
            raise InvalidInput(f"limit is {request.limit}; at most {MOST_LISTED}", field="limit")
        tenant, most = CALLER.get().tenant, request.limit or _LISTED

        def look() -> dataset_pb2.ListDatasetsResponse:
            found = list_datasets(self.workshop.folder, tenant, request.persona or None, request.recipe or None)
            newest = [_told(dataset.manifest) for dataset in reversed(found[-most:])]
            return dataset_pb2.ListDatasetsResponse(datasets=newest, older=len(found) - len(newest))

        return await self.looks.take(look)

    async def GetDataset(self, request: dataset_pb2.GetDatasetRequest, context: Any) -> dataset_pb2.GetDatasetResponse:
        tenant = CALLER.get().tenant

        def look() -> dataset_pb2.GetDatasetResponse:
            with without_folder(self.workshop.folder):
                return _portrait(portray(find_dataset(self.workshop.folder, tenant, request.dataset_id)))

        return await self.looks.take(look)

    async def CompareDatasets(
        self, request: dataset_pb2.CompareDatasetsRequest, context: Any
    ) -> dataset_pb2.CompareDatasetsResponse:
        tenant = CALLER.get().tenant

        def look() -> dataset_pb2.CompareDatasetsResponse:
            ids = (request.first_id, request.second_id)
            with without_folder(self.workshop.folder):
                return _difference(difference(*(find_dataset(self.workshop.folder, tenant, name) for name in ids)))

        return await self.looks.take(look)

    async def VerifyDatasets(
        self, request: dataset_pb2.VerifyDatasetsRequest, context: Any
    ) -> AsyncIterator[dataset_pb2.VerifyDatasetsResponse]:
        tenant, folder = CALLER.get().tenant, self.workshop.folder

        def check(tell: Callable[[dataset_pb2.VerifyDatasetsResponse], None]) -> None:
            names = names_of(folder, tenant)
            if request.dataset_id:
                names = [find_name(folder, tenant, request.dataset_id)]
            tell(dataset_pb2.VerifyDatasetsResponse(datasets=len(names)))
            for name in names:
                try:
                    checked = dataset_pb2.CheckedDataset(dataset_id=name, damage=verify(folder, name))
                except NotFound:  # deleted meanwhile
                    continue
                tell(dataset_pb2.VerifyDatasetsResponse(checked=checked))

        async for part in self.looks.follow(check):
            yield part

    async def ExplainExample(
        self, request: dataset_pb2.ExplainExampleRequest, context: Any
    ) -> dataset_pb2.ExplainExampleResponse:
        tenant, folder = CALLER.get().tenant, self.workshop.folder
        if not request.id:
            raise InvalidInput("id is empty; it is an example's, a signal's or a response's", field="id")
        check_length(request.id, MAX_ID_CHARACTERS, "id")

        def look() -> dataset_pb2.ExplainExampleResponse:
            told = dataset_pb2.ExplainExampleResponse()
            with without_folder(folder):
                for found in itertools.islice(explain(folder, tenant, request.id), MOST):
                    _explain(found, told)
            if not told.examples and not told.missing:
                raise NotFound("the newest datasets say nothing of that id", field="id")
            return told

        return await self.looks.take(look)


def _explain(found: Weighed | Missing, told: dataset_pb2.ExplainExampleResponse) -> None:
    if isinstance(found, Missing):
        told.missing.add(persona=found.persona, recipe=found.recipe, feedback_id=found.feedback_id, reason=found.reason)
        return
    manifest = found.dataset.manifest
    told.examples.add(
        dataset_id=manifest.dataset_id,
        persona=manifest.persona,
        recipe=manifest.recipe.name,
        example_id=found.example_id,
        label=found.label,
        split=found.split,
        created_unix_ms=found.created_unix_ms,
        people=found.people,
        given_weight=found.given,
        weight=found.weight,
        steps=[dataset_pb2.ExplainedExample.Step(factor=factor, reason=reason) for factor, reason in found.steps],
    )


def _told(manifest: Manifest) -> dataset_pb2.Dataset:
    counts = {name: manifest.counts.get(name, {}) for name in ("train", "heldout", "left_out", "weighed")}
    return dataset_pb2.Dataset(
        dataset_id=manifest.dataset_id,
        persona=manifest.persona,
        recipe=manifest.recipe.name,
        created_unix_ms=manifest.created_unix_ms,
        bytes=sum(file.bytes for file in manifest.files),
        files=len(manifest.files),
        **counts,
    )


def _portrait(portrait: Portrait) -> dataset_pb2.GetDatasetResponse:
    manifest = portrait.manifest
    told = dataset_pb2.GetDatasetResponse(
        dataset=_told(manifest),
        recipe_text=manifest.recipe.text,
        settings_json=json.dumps(manifest.settings, sort_keys=True),
        table_versions=manifest.table_versions,
        people=portrait.people,
        most_by_one=portrait.most_by_one,
        effective_examples=portrait.effective,
    )
    for bars in portrait.bars:
        drawn = [dataset_pb2.Bars.Bar(name=name, count=count) for name, count in bars.counts.items()]
        told.bars.add(title=bars.title, unit=bars.unit, bars=drawn)
    return told


def _difference(found: Difference) -> dataset_pb2.CompareDatasetsResponse:
    told = dataset_pb2.CompareDatasetsResponse(
        kept=found.kept,
        only_first=found.removed,
        only_second=found.added,
        relabelled=found.relabelled,
        reweighted=found.reweighted,
        moved=found.moved,
    )
    for name, (before, after) in found.made_by.items():
        told.made_by.add(name=name, before=before, after=after)
    return told
