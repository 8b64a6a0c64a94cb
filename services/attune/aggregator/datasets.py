"""What an operator asks of datasets: one made now, what is in one, what tells two apart, whether one is whole."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from attune.aggregator.build import BuildRules, build_dataset
from attune.errors import DataLoss, InvalidInput, NotFound
from attune.ids import DEFAULT_TENANT
from attune.lake.dataset import Dataset, Manifest, Recipe, list_datasets, open_dataset
from attune.lake.place import Place
from attune.lake.snapshot import Source, read_snapshot
from attune.lake.spark import open_spark_snapshot
from attune.personas import Persona

_Open = Callable[[Place, int, int], AbstractContextManager[Source]]

ENGINES: Mapping[str, _Open] = {"duckdb": read_snapshot, "spark": open_spark_snapshot}

_MS_PER_DAY = 86_400_000
_SHORTEST_PREFIX = 4
_DIGITS = 32
_NAMED = 5


@dataclass(frozen=True)
class Workshop:
    """Where datasets are, and what it takes to make one."""

    folder: Path
    lake: Place
    rules: BuildRules
    split_key: bytes

    def build(
        self, persona: Persona, recipes: Sequence[Recipe], *, engine: str, now_unix_ms: int
    ) -> Iterator[tuple[Dataset, bool]]:
        """The persona's datasets by these recipes, one after another; with each, whether it is new.

        Raises NotFound without a lake, DataLoss where its tables are damaged.
        """
        before = {dataset.manifest.dataset_id for dataset in list_datasets(self.folder, persona.tenant)}
        with ENGINES[engine](self.lake, self.rules.threads, self.rules.memory_mib) as source:
            for recipe in recipes:
                dataset = build_dataset(
                    source,
                    self.folder,
                    tenant=persona.tenant,
                    persona=persona.name,
                    recipe=recipe,
                    rules=self.rules,
                    split_key=self.split_key,
                    now_unix_ms=now_unix_ms,
                )
                yield dataset, dataset.manifest.dataset_id not in before


def names_of(folder: Path, tenant: str) -> list[str]:
    """A tenant's datasets, in order; whose manifest cannot be read, nobody knows whose it is: the default tenant's."""
    listed = list_datasets(folder)
    names = {dataset.manifest.dataset_id for dataset in listed if dataset.manifest.tenant == tenant}
    if tenant == DEFAULT_TENANT:
        there = {file.parent.name for file in folder.glob("d-*/manifest.json")}
        names |= there - {dataset.manifest.dataset_id for dataset in listed}
    return sorted(names)


def find_name(folder: Path, tenant: str, name: str) -> str:
    """The id of a tenant's dataset, by itself or by a beginning that fits no other of the tenant's.

    Raises NotFound, and InvalidInput when several fit.
    """
    digits = name.removeprefix("d-")
    if not _SHORTEST_PREFIX <= len(digits) <= _DIGITS or not all(letter in "0123456789abcdef" for letter in digits):
        raise InvalidInput(
            f"that is no dataset's id; it looks like d-1e46c4dd, with {_SHORTEST_PREFIX} digits or more",
            field="dataset_id",
        )
    found = [each for each in names_of(folder, tenant) if each.startswith(f"d-{digits}")]
    if not found:
        raise NotFound(f"no dataset d-{digits}", field="dataset_id")
    if len(found) > 1:
        some = ", ".join(found[:_NAMED]) + (" and others" if len(found) > _NAMED else "")
        raise InvalidInput(f"d-{digits} could be any of {some}", field="dataset_id")
    return found[0]


def find_dataset(folder: Path, tenant: str, name: str) -> Dataset:
    """As find_name; each file is checked. Raises DataLoss when it is damaged."""
    with without_folder(folder):
        return open_dataset(folder / find_name(folder, tenant, name))


def verify(folder: Path, name: str) -> str:
    """What is wrong with a dataset: every byte is to be what the manifest says, and the rows those that the id was
    made of. Nothing when it is whole; raises NotFound."""
    try:
        with without_folder(folder):
            dataset = open_dataset(folder / name)
            found = dataset.rebuilt_id()
    except DataLoss as error:
        return error.message
    return "" if found == name else f"its rows make {found}: the manifest was changed"


@contextlib.contextmanager
def without_folder(folder: Path) -> Iterator[None]:
    """Where datasets lie is nobody's business who asks from elsewhere."""
    try:
        yield
    except (DataLoss, NotFound) as error:
        raise type(error)(error.message.replace(f"{folder}/", "")) from error


@dataclass(frozen=True)
class Bars:
    """How many fall into each of some classes, in an order that means something."""

    title: str
    counts: Mapping[str, int]
    unit: str = "examples"


@dataclass(frozen=True)
class Portrait:
    """What a dataset looks like. `effective` is Kish's effective number of examples, (sum w)^2 / sum w^2."""

    manifest: Manifest
    examples: int
    people: int
    most_by_one: int
    effective: float
    bars: tuple[Bars, ...]


def portray(dataset: Dataset) -> Portrait:
    """Reads the columns it needs, file by file. Raises DataLoss."""
    labels: Counter[str] = Counter()
    people: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    ages, weights = [], []
    for part in dataset.files(["split", "label", "people", "persona_version", "created_unix_ms", "weight"]):
        labels.update(
            f"{split} {label}"
            for split, label in zip(part["split"].to_pylist(), part["label"].to_pylist(), strict=True)
        )
        people.update(pc.list_flatten(part["people"]).to_pylist())
        versions.update(version[:12] for version in part["persona_version"].to_pylist())
        ages.append((dataset.manifest.created_unix_ms - part["created_unix_ms"].to_numpy()) / _MS_PER_DAY)
        weights.append(part["weight"].to_numpy())
    age, weight = np.concatenate(ages), np.concatenate(weights)
    return Portrait(
        dataset.manifest,
        len(weight),
        len(people),
        max(people.values(), default=0),
        float(weight.sum() ** 2 / (weight**2).sum()) if len(weight) else 0.0,
        (
            Bars("balance", dict(sorted(labels.items()))),
            Bars("people by how many examples they have a part in", _doubling(list(people.values())), "people"),
            Bars("age in days", _tenths(age)),
            Bars("persona versions", dict(versions.most_common(10))),
            Bars("weights", _weights(weight)),
            Bars("left out", dict(dataset.manifest.counts["left_out"]), "rows"),
        ),
    )


def _doubling(counts: Sequence[int]) -> dict[str, int]:
    """1, 2-3, 4-7, ..."""
    classes = Counter(int(math.log2(count)) for count in counts)
    return {
        str(2**power) if power == 0 else f"{2**power}-{2 ** (power + 1) - 1}": classes[power]
        for power in range(max(classes, default=-1) + 1)
    }


def _tenths(values: np.ndarray) -> dict[str, int]:
    """Ten classes of the same width, from the least to the largest."""
    if not len(values):
        return {}
    counts, edges = np.histogram(values, 10)
    digits = max(0, 1 - math.floor(math.log10(edges[1] - edges[0])))
    return {f"{edges[at]:.{digits}f} to {edges[at + 1]:.{digits}f}": int(count) for at, count in enumerate(counts)}


def _weights(weights: np.ndarray) -> dict[str, int]:
    """Each weight where there are few, else tenths of their range."""
    values, counts = np.unique(np.round(weights, 3), return_counts=True)
    if len(values) <= 10:
        return {f"{value:.3g}": int(count) for value, count in zip(values, counts, strict=True)}
    return _tenths(weights)


@dataclass(frozen=True)
class Difference:
    """What the second dataset has that the first has not, and the other way round."""

    made_by: Mapping[str, tuple[str, str]]
    added: int
    removed: int
    kept: int
    relabelled: int
    reweighted: int
    moved: int


def difference(first: Dataset, second: Dataset) -> Difference:
    """By example_id; `moved` went to the other split. Holds a file of each at a time. Raises DataLoss."""
    count: Counter[str] = Counter()
    for before, after in _side_by_side(_examples(first), _examples(second)):
        if before is None or after is None:
            count["added" if before is None else "removed"] += 1
            continue
        count["kept"] += 1
        count["relabelled"] += before.label != after.label
        count["reweighted"] += before.weight != after.weight
        count["moved"] += before.split != after.split
    definitions = [_definition(dataset.manifest) for dataset in (first, second)]
    return Difference(
        {name: (old, definitions[1][name]) for name, old in definitions[0].items() if old != definitions[1][name]},
        **{name: count[name] for name in ("added", "removed", "kept", "relabelled", "reweighted", "moved")},
    )


class _Example(NamedTuple):
    example_id: str
    label: str
    weight: float
    split: str


def _examples(dataset: Dataset) -> Iterator[_Example]:
    """In the order of their ids, as they lie in the files."""
    for part in dataset.files(list(_Example._fields)):
        yield from map(_Example, *(part[name].to_pylist() for name in _Example._fields))


def _side_by_side(
    first: Iterator[_Example], second: Iterator[_Example]
) -> Iterator[tuple[_Example | None, _Example | None]]:
    """Each id once, with what either has of it; both come in the order of their ids."""
    before, after = next(first, None), next(second, None)
    while before or after:
        if after is None or (before is not None and before.example_id < after.example_id):
            yield before, None
            before = next(first, None)
        elif before is None or after.example_id < before.example_id:
            yield None, after
            after = next(second, None)
        else:
            yield before, after
            before, after = next(first, None), next(second, None)


def _definition(manifest: Manifest) -> dict[str, str]:
    return {
        "persona": manifest.persona,
        "recipe": manifest.recipe.name,
        "recipe's text": manifest.recipe.text,
        "seed": str(manifest.seed),
        "settings": ", ".join(f"{name} = {value}" for name, value in sorted(manifest.settings.items())),
    }
