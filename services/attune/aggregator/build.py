"""From the lake to a persona's dataset: when it is due, and what is in it."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from attune import metrics
from attune.aggregator.split import split_of
from attune.lake.dataset import ROW_SCHEMA, Dataset, Definition, Recipe, list_datasets, write_dataset
from attune.lake.left_out import write_left_out
from attune.lake.snapshot import Snapshot

logger = logging.getLogger(__name__)

_RECIPES = Path(__file__).parent / "recipes"
_MS_PER_DAY = 86_400_000

# A vote is new when nothing of its natural key stood in the log before the newest dataset's positions.
_COUNT_NEW = """
SELECT count(*) FROM (
    SELECT f.response_id, f.end_user
    FROM {feedback} AS f
    LEFT JOIN covered AS c ON c.source = f.log_id || '/' || f.log_partition
    WHERE f.tenant = $tenant AND f.kind = 'thumb' AND f.persona = $persona
    GROUP BY f.response_id, f.end_user
    HAVING bool_and(c.next_offset IS NULL OR f.log_offset >= c.next_offset)
)
"""
_SOME_NAME_NO_PERSONA = "SELECT count(*) > 0 FROM feedback WHERE persona = ''"
# What names no persona is its response's persona's: only then the responses have to be read.
_WITH_PERSONA = """(
    SELECT f.* REPLACE (CASE WHEN f.persona <> '' THEN f.persona ELSE r.persona END AS persona)
    FROM feedback AS f
    LEFT JOIN (SELECT DISTINCT response_id, persona FROM responses_rows) AS r USING (response_id)
)"""
_POSITIONS = """
SELECT log_id || '/' || log_partition, max(log_offset) + 1 FROM feedback_rows GROUP BY log_id, log_partition
"""


@dataclass(frozen=True)
class BuildRules:
    """How datasets are made."""

    build_feedback: int
    window_days: float
    heldout_share: float
    recipe: str = "thumbs"
    seed: int = 0


def load_recipe(name: str) -> Recipe:
    return Recipe(name, (_RECIPES / f"{name}.sql").read_text(encoding="utf-8"))


def feedback_positions(snapshot: Snapshot) -> dict[str, int]:
    """How far feedback was ingested: the next offset of each `<log id>/<partition>`."""
    return dict(sorted(snapshot.rows(_POSITIONS)))


def count_new(snapshot: Snapshot, tenant: str, persona: str, covered: Mapping[str, int]) -> int:
    """How many people's thumbs on how many responses came after these positions, revisions of older ones apart."""
    snapshot.connection.register(
        "covered",
        pa.table(
            {
                "source": pa.array(covered.keys(), pa.string()),
                "next_offset": pa.array(covered.values(), pa.int64()),
            }
        ),
    )
    feedback = _WITH_PERSONA if snapshot.rows(_SOME_NAME_NO_PERSONA)[0][0] else "feedback"
    count: int = snapshot.rows(_COUNT_NEW.format(feedback=feedback), {"tenant": tenant, "persona": persona})[0][0]
    return count


def build_dataset(
    snapshot: Snapshot,
    folder: Path,
    *,
    tenant: str,
    persona: str,
    rules: BuildRules,
    split_key: bytes,
    now_unix_ms: int,
) -> Dataset:
    """Runs the recipe over the window that ends now and writes what it gives; a function of what was ingested."""
    recipe = load_recipe(rules.recipe)
    from_unix_ms = now_unix_ms - int(rules.window_days * _MS_PER_DAY)
    found = snapshot.table(recipe.text, {"tenant": tenant, "persona": persona, "from_unix_ms": from_unix_ms})
    left_out = Counter(reason for reason in found["left_out"].to_pylist() if reason is not None)
    rows = _split(found.filter(pa.compute.is_null(found["left_out"])), tenant, rules, split_key)
    settings: dict[str, Any] = {"window_days": rules.window_days, "heldout_share": rules.heldout_share}
    dataset = write_dataset(
        folder,
        rows,
        Definition(tenant, persona, recipe, settings, rules.seed),
        left_out=left_out,
        table_versions=snapshot.versions,
        feedback_positions=feedback_positions(snapshot),
        created_unix_ms=now_unix_ms,
    )
    write_left_out(folder, dataset.manifest, found, now_unix_ms)
    return dataset


def _split(found: pa.Table, tenant: str, rules: BuildRules, key: bytes) -> pa.Table:
    people = zip(
        found["end_user"].to_pylist(), found["author"].to_pylist(), found["conversation_id"].to_pylist(), strict=True
    )
    splits = [
        split_of(key, tenant, (giver, author), conversation_id, rules.heldout_share)
        for giver, author, conversation_id in people
    ]
    return found.append_column("split", pa.array(splits, pa.string())).select(ROW_SCHEMA.names)


class Builder:
    """Builds a persona's dataset whenever enough new feedback has come.

    What is new follows from the tables and the newest manifest; memory only keeps a build that gave nothing new from
    being tried again at once, and says when counting can wait.
    """

    def __init__(self, folder: Path, rules: BuildRules, split_key: bytes) -> None:
        self._folder = folder
        self._rules = rules
        self._split_key = split_key
        self._tried: dict[tuple[str, str], dict[str, int]] = {}
        self._missing: dict[tuple[str, str], int] = {}

    def least_missing(self) -> int:
        """How many rows of feedback must come, at the least, before some persona's dataset is due; 0 before a count."""
        return min(self._missing.values(), default=0)

    def build_if_due(self, snapshot: Snapshot, tenant: str, persona: str, now_unix_ms: int) -> Dataset | None:
        datasets = list_datasets(self._folder, tenant, persona)
        newest = datasets[-1] if datasets else None
        covered = dict(newest.manifest.feedback_positions) if newest else {}
        for source, offset in self._tried.get((tenant, persona), {}).items():
            covered[source] = max(offset, covered.get(source, 0))
        new = count_new(snapshot, tenant, persona, covered)
        metrics.NEW_FEEDBACK.labels(persona).set(new)
        self._missing[tenant, persona] = self._rules.build_feedback - new
        if newest is not None:
            _show(newest)
        if new < self._rules.build_feedback:
            return None
        dataset = build_dataset(
            snapshot,
            self._folder,
            tenant=tenant,
            persona=persona,
            rules=self._rules,
            split_key=self._split_key,
            now_unix_ms=now_unix_ms,
        )
        self._tried[tenant, persona] = feedback_positions(snapshot)
        self._missing[tenant, persona] = self._rules.build_feedback
        metrics.NEW_FEEDBACK.labels(persona).set(0)
        if newest is not None and dataset.manifest.dataset_id == newest.manifest.dataset_id:
            return None
        metrics.DATASETS_BUILT.labels(persona).inc()
        _show(dataset)
        logger.info(
            "dataset built",
            extra={"dataset_id": dataset.manifest.dataset_id, "persona": persona, "counts": dataset.manifest.counts},
        )
        return dataset


def _show(dataset: Dataset) -> None:
    manifest = dataset.manifest
    for split in ("train", "heldout"):
        for label, count in manifest.counts[split].items():
            metrics.DATASET_EXAMPLES.labels(manifest.persona, split, label).set(count)
