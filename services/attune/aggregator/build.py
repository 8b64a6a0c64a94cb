"""From the lake to a persona's datasets: when one is due, and what is in it."""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from attune import metrics
from attune.aggregator.recipe import kinds_of, load_recipe
from attune.aggregator.split import split_of
from attune.aggregator.trust.rows import Collector
from attune.aggregator.trust.standing import NOBODY, by_agreement, by_controls
from attune.aggregator.trust.weigh import WEIGHED_BY, Weights, weigh
from attune.errors import FailedPrecondition
from attune.ids import persona_label
from attune.lake.dataset import Dataset, Definition, Recipe, list_datasets, write_dataset
from attune.lake.erased import list_erased
from attune.lake.left_out import write_left_out
from attune.lake.snapshot import Source
from attune.settings import AggregatorSettings, TrustSettings

logger = logging.getLogger(__name__)

_MS_PER_DAY = 86_400_000
_NEEDED = (
    "example_id",
    "label",
    "weight",
    "people",
    "givers",
    "messages",
    "feedback_ids",
    "response_ids",
    "conversation_id",
    "created_unix_ms",
)

# A signal is new when nothing of its natural key stood in the log before the newest dataset's positions.
_COUNT_NEW = """
SELECT count(*) FROM (
    SELECT 1
    FROM {feedback} AS f
    LEFT JOIN covered AS c ON c.source = f.log_id || '/' || f.log_partition
    WHERE f.tenant = $tenant AND f.kind IN (SELECT kind FROM kinds) AND f.persona = $persona
    GROUP BY
        f.kind, f.name, f.author, f.end_user, f.response_id, CASE WHEN f.response_id = '' THEN f.conversation_id END
    HAVING bool_and(c.next_offset IS NULL OR f.log_offset >= c.next_offset)
)
"""
_SOME_NAME_NO_PERSONA = "SELECT count(*) > 0 FROM feedback WHERE persona = ''"
# What names no persona is its response's persona's, or its conversation's: only then the responses have to be read.
_WITH_PERSONA = """(
    SELECT f.* REPLACE (coalesce(nullif(f.persona, ''), r.persona, c.persona) AS persona)
    FROM feedback AS f
    LEFT JOIN (
        SELECT response_id, min(persona) AS persona FROM responses_rows
        WHERE response_id IN (SELECT response_id FROM feedback WHERE persona = '') GROUP BY response_id
    ) AS r ON r.response_id = f.response_id
    LEFT JOIN (
        SELECT conversation_id, min(persona) AS persona FROM responses_rows
        WHERE conversation_id IN (SELECT conversation_id FROM feedback WHERE persona = '' AND response_id = '')
        GROUP BY conversation_id
    ) AS c ON f.response_id = '' AND c.conversation_id = f.conversation_id
)"""
_POSITIONS = """
SELECT log_id || '/' || CAST(log_partition AS VARCHAR), max(log_offset) + 1 FROM feedback_rows
GROUP BY log_id, log_partition
"""


@dataclass(frozen=True)
class BuildRules:
    """How datasets are made; `arguments` are a recipe's own numbers by their names, by recipe."""

    build_feedback: int
    window_days: float
    heldout_share: float
    recipes: tuple[str, ...] = ("thumbs",)
    persona_recipes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    arguments: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    trust: TrustSettings = field(default_factory=TrustSettings)
    threads: int = 2
    memory_mib: int = 1024
    seed: int = 0

    @classmethod
    def from_settings(cls, settings: AggregatorSettings) -> "BuildRules":
        rewards = {f"implicit.{name}": weight for name, weight in settings.rewards.implicit.items()}
        rewards |= {f"outcome.{name}": weight for name, weight in settings.rewards.outcomes.items()}
        return cls(
            settings.build_feedback,
            settings.window_days,
            settings.heldout_share,
            settings.recipes,
            settings.persona_recipes,
            {"rewards": rewards},
            settings.trust,
            settings.build_threads,
            settings.build_memory_mib,
        )

    def recipes_of(self, persona: str) -> tuple[str, ...]:
        return self.persona_recipes.get(persona, self.recipes)


def feedback_positions(source: Source) -> dict[str, int]:
    """How far feedback was ingested: the next offset of each `<log id>/<partition>`."""
    return dict(sorted((str(log), int(offset)) for log, offset in source.rows(_POSITIONS)))


def count_new(source: Source, tenant: str, persona: str, recipe: Recipe, covered: Mapping[str, int]) -> int:
    """How many signals that the recipe reads came after these positions, revisions of older ones apart."""
    source.define(
        "covered",
        pa.table(
            {
                "source": pa.array(covered.keys(), pa.string()),
                "next_offset": pa.array(covered.values(), pa.int64()),
            }
        ),
    )
    source.define("kinds", pa.table({"kind": pa.array(kinds_of(recipe), pa.string())}))
    feedback = _WITH_PERSONA if source.rows(_SOME_NAME_NO_PERSONA)[0][0] else "feedback"
    count: int = source.rows(_COUNT_NEW.format(feedback=feedback), {"tenant": tenant, "persona": persona})[0][0]
    return count


def build_dataset(
    source: Source,
    folder: Path,
    *,
    tenant: str,
    persona: str,
    recipe: Recipe,
    rules: BuildRules,
    split_key: bytes,
    now_unix_ms: int,
    reached: Callable[[str], None] = lambda _step: None,
) -> Dataset:
    """Runs the recipe over the window that ends now and writes what it gives; a function of what was ingested.

    `reached` is told each step that is done; crash tests strike there.
    """
    arguments = dict(sorted(rules.arguments.get(recipe.name, {}).items()))
    source.define(
        "arguments",
        pa.table(
            {"name": pa.array(arguments.keys(), pa.string()), "value": pa.array(arguments.values(), pa.float64())}
        ),
    )
    from_unix_ms = now_unix_ms - int(rules.window_days * _MS_PER_DAY)
    positions = feedback_positions(source)
    found = source.run(recipe.text, {"tenant": tenant, "persona": persona, "from_unix_ms": from_unix_ms})
    reached("rows read")
    examples = Examples(found, tenant, rules.heldout_share, split_key)
    weights = functools.cache(lambda: _weigh(examples, source, rules.trust, tenant, from_unix_ms))
    settings: dict[str, Any] = {
        "window_days": rules.window_days,
        "heldout_share": rules.heldout_share,
        "trust": rules.trust.model_dump(mode="json"),
    }
    if arguments:
        settings["arguments"] = arguments
    dataset = write_dataset(
        folder,
        examples.reader(),
        Definition(tenant, persona, recipe, settings, rules.seed),
        finish=lambda rows: weights().apply(rows),
        left_out=examples.reasons,
        weighed=lambda: weights().changed(),
        table_versions=source.versions,
        feedback_positions=positions,
        created_unix_ms=now_unix_ms,
        reached=reached,
    )
    write_left_out(folder, dataset.manifest, examples.left_out(), now_unix_ms)
    return dataset


def _weigh(examples: "Examples", source: Source, rules: TrustSettings, tenant: str, from_unix_ms: int) -> Weights:
    """Once all examples were read: the views that a recipe defined are still there, and the source is free."""
    asked = (source, tenant, from_unix_ms)
    reviewers = by_agreement(*asked) if rules.reviewers_agreement else NOBODY
    return weigh(examples.collected.rows(), rules, by_controls(*asked), reviewers)


class Examples:
    """What a recipe found, taken apart while it is read: examples, each with its split, and what is left out."""

    def __init__(self, found: pa.RecordBatchReader, tenant: str, heldout_share: float, split_key: bytes) -> None:
        missing = [name for name in ("left_out", *_NEEDED) if name not in found.schema.names]
        if missing:
            raise FailedPrecondition(f"the recipe gives no {', '.join(missing)}")
        self.reasons: Counter[str] = Counter()
        self.collected = Collector()
        self._found = found
        self._split = (split_key, tenant, heldout_share)
        self._ids = pa.schema([("feedback_ids", pa.list_(pa.string())), ("left_out", pa.string())])
        self._left_out: list[pa.RecordBatch] = []

    def reader(self) -> pa.RecordBatchReader:
        """The examples, not yet weighed; `reasons`, `left_out` and `collected` are whole once all were read."""
        columns = [field for field in self._found.schema if field.name not in ("left_out", "givers")]
        added = [("weighed_by", WEIGHED_BY), ("split", pa.string())]
        return pa.RecordBatchReader.from_batches(pa.schema([*columns, *added]), self._examples())

    def left_out(self) -> pa.Table:
        """Of each row that is no example its feedback_ids, and in left_out the reason."""
        return pa.Table.from_batches(self._left_out, self._ids)

    def _examples(self) -> Iterator[pa.RecordBatch]:
        for batch in self._found:
            reasons = batch.column("left_out")
            counts = pc.value_counts(reasons.drop_null())
            self.reasons.update({each["values"].as_py(): each["counts"].as_py() for each in counts})
            self._left_out.append(batch.select(self._ids.names).filter(pc.is_valid(reasons)).cast(self._ids))
            examples = self._with_split(batch.filter(pc.is_null(reasons)).drop_columns("left_out"))
            self.collected.add(examples)
            yield examples.drop_columns("givers")

    def _with_split(self, examples: pa.RecordBatch) -> pa.RecordBatch:
        """People become those who are known, each once: who spoke, and whom was spoken to."""
        key, tenant, heldout_share = self._split
        people = [sorted(set(filter(None, names))) for names in examples.column("people").to_pylist()]
        conversations = examples.column("conversation_id").to_pylist()
        splits = [
            split_of(key, tenant, names, conversation_id, heldout_share)
            for names, conversation_id in zip(people, conversations, strict=True)
        ]
        place = examples.schema.get_field_index("people")
        known = examples.set_column(
            place, examples.schema.field(place), pa.array(people, examples.schema.field(place).type)
        )
        unchanged = pa.array([[]] * len(splits), WEIGHED_BY)
        return known.append_column("weighed_by", unchanged).append_column("split", pa.array(splits, pa.string()))


class Builder:
    """Builds a persona's dataset by a recipe whenever enough new feedback has come.

    What is new follows from the tables and the newest manifest; memory only keeps a build that gave nothing new from
    being tried again at once, and says when counting can wait.
    """

    def __init__(
        self,
        folder: Path,
        rules: BuildRules,
        split_key: bytes,
        *,
        reached: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self.folder = folder
        self.rules = rules
        self._split_key = split_key
        self._reached = reached
        self._tried: dict[tuple[str, str, str], dict[str, int]] = {}
        self._missing: dict[tuple[str, str, str], int] = {}

    def least_missing(self) -> int:
        """How many rows of feedback must come, at the least, before some dataset is due; 0 before a count."""
        return min(self._missing.values(), default=0)

    def build_due(self, source: Source, tenant: str, persona: str, now_unix_ms: int) -> None:
        """By each recipe that the rules name for the persona."""
        for recipe in self.rules.recipes_of(persona):
            self.build_if_due(source, tenant, persona, recipe, now_unix_ms)

    def build(self, source: Source, tenant: str, persona: str, recipe_name: str, now_unix_ms: int) -> Dataset:
        """Whether it is due or not."""
        return build_dataset(
            source,
            self.folder,
            tenant=tenant,
            persona=persona,
            recipe=load_recipe(recipe_name),
            rules=self.rules,
            split_key=self._split_key,
            now_unix_ms=now_unix_ms,
            reached=self._reached,
        )

    def build_if_due(
        self, source: Source, tenant: str, persona: str, recipe_name: str, now_unix_ms: int
    ) -> Dataset | None:
        recipe, name = load_recipe(recipe_name), (tenant, persona, recipe_name)
        datasets = list_datasets(self.folder, tenant, persona, recipe_name)
        newest = datasets[-1] if datasets else None
        covered = dict(newest.manifest.feedback_positions) if newest else {}
        gone = [one.feedback_positions for one in list_erased(self.folder).values() if one.made_for(*name)]
        for positions in (*gone, self._tried.get(name, {})):
            for log, offset in positions.items():
                covered[log] = max(offset, covered.get(log, 0))
        new = count_new(source, tenant, persona, recipe, covered)
        metrics.NEW_FEEDBACK.labels(persona_label(tenant, persona), recipe_name).set(new)
        self._missing[name] = self.rules.build_feedback - new
        if newest is not None:
            _show(newest)
        if new < self.rules.build_feedback:
            return None
        dataset = self.build(source, tenant, persona, recipe_name, now_unix_ms)
        self._tried[name] = feedback_positions(source)
        self._missing[name] = self.rules.build_feedback
        metrics.NEW_FEEDBACK.labels(persona_label(tenant, persona), recipe_name).set(0)
        if newest is not None and dataset.manifest.dataset_id == newest.manifest.dataset_id:
            return None
        metrics.DATASETS_BUILT.labels(persona_label(tenant, persona), recipe_name).inc()
        _show(dataset)
        logger.info(
            "dataset built",
            extra={
                "dataset_id": dataset.manifest.dataset_id,
                "persona": persona,
                "recipe": recipe_name,
                "counts": dataset.manifest.counts,
            },
        )
        return dataset


def _show(dataset: Dataset) -> None:
    manifest = dataset.manifest
    persona = persona_label(manifest.tenant, manifest.persona)
    for split in ("train", "heldout"):
        metrics.DATASET_EXAMPLES.remove_by_labels({"persona": persona, "recipe": manifest.recipe.name, "split": split})
        for label, count in manifest.counts[split].items():
            metrics.DATASET_EXAMPLES.labels(persona, manifest.recipe.name, split, label).set(count)
