"""After a run: is what was acknowledged in the lake, once, as it was sent, and nothing else?"""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from attune.aggregator.build import build_dataset
from attune.aggregator.ingest import Ingest
from attune.aggregator.recipe import load_recipe
from attune.errors import AttuneError
from attune.eventlog import FEEDBACK, RESPONSES, SqliteLog
from attune.lake.dataset import list_datasets, open_dataset
from attune.lake.lake import Lake
from attune.lake.snapshot import open_snapshot
from attune.rehearsal.soak.events import BEGUN_UNIX_MS, PERSONA, TENANT, events, key_of
from attune.rehearsal.soak.parts import RULES, SPLIT_KEY, Site
from attune.rehearsal.soak.schedule import Schedule

logger = logging.getLogger(__name__)

_SPOOL_BYTES = 64 << 20
_NOW_UNIX_MS = BEGUN_UNIX_MS + 1_000_000
_COMPARED = {
    "responses": ["event_id", "response_id", "text", "prompt_token_ids", "output_token_ids", "created_unix_ms"],
    "feedback": ["event_id", "response_id", "thumb", "revision", "end_user", "created_unix_ms"],
}


def findings(site: Site, schedule: Schedule) -> list[str]:
    """What is wrong, a sentence each; empty when all holds."""
    lake = Lake(site.lake)
    sent = events(schedule.seed, schedule.responses)
    told = Counter(site.told.read_text().splitlines())
    poison = told.pop("", 0)
    there = {
        event_id
        for table in (lake.responses, lake.feedback)
        for event_id in table.read(["event_id"])["event_id"].to_pylist()
    }
    wrong = _misses("lost", told.keys() - there)
    wrong += _misses("doubled", _doubled(lake))
    wrong += _misses("invented", there - sent.keys())
    dead = lake.dead_letter.count()
    if dead < poison:
        wrong.append(f"{poison} records that are no events were acknowledged, {dead} are among the dead letters")
    if wrong:
        return wrong
    clean = _clean_lake(site.folder / "clean", {event_id: sent[event_id] for event_id in there})
    wrong += _altered(lake, clean)
    return wrong + _datasets(site, lake, clean)


def missing(site: Site) -> int:
    """How many acknowledged records the lake does not hold yet; all of them while it cannot be read."""
    told = Counter(site.told.read_text().splitlines())
    poison = told.pop("", 0)
    try:
        lake = Lake(site.lake)
        tables = (lake.responses, lake.feedback)
        there = (table.read(["event_id"])["event_id"].to_pylist() for table in tables)
        return len(set(told).difference(*there)) + max(0, poison - lake.dead_letter.count())
    except (AttuneError, OSError):
        return told.total() + poison


def _misses(what: str, ids: set[str]) -> list[str]:
    return [f"{len(ids)} {what}: {', '.join(sorted(ids)[:5])}"] if ids else []


def _doubled(lake: Lake) -> set[str]:
    """With the partition and offset of each: a record that was sent again may stand in another partition."""
    places = ["event_id", "log_id", "log_partition", "log_offset"]
    doubled: set[str] = set()
    for table in (lake.responses, lake.feedback):
        found: dict[str, list[str]] = {}
        for row in table.read(places).to_pylist():
            found.setdefault(row["event_id"], []).append(f"{row['log_partition']}/{row['log_offset']}")
        doubled |= {f"{event_id} at {' and '.join(at)}" for event_id, at in found.items() if len(at) > 1}
    return doubled


def _clean_lake(folder: Path, sent: Mapping[str, tuple[str, bytes]]) -> Lake:
    """What the lake should be: the same events, each once, in order, without any fault."""
    log = SqliteLog(folder / "spool", max_bytes=_SPOOL_BYTES, readers=("aggregator",), feedback_share=0.1)
    for appended in [log.append(topic, key_of(payload), payload) for topic, payload in sent.values()]:
        appended.result(30)
    lake = Lake(folder / "lake")
    for topic in (RESPONSES, FEEDBACK):
        ingest = Ingest(log, lake, topic, batch_records=5000)
        while ingest.poll():
            pass
    log.close()
    return lake


def _altered(lake: Lake, clean: Lake) -> list[str]:
    wrong = []
    for name, columns in _COMPARED.items():
        one, other = (
            getattr(each, name).read(columns).select(columns).sort_by("event_id").to_pylist() for each in (lake, clean)
        )
        if one != other:
            row = next(row for row, good in zip(one, other, strict=True) if row != good)
            wrong.append(f"{name}: {row['event_id']} is not as it was sent")
    return wrong


def _datasets(site: Site, lake: Lake, clean: Lake) -> list[str]:
    """What was built opens, and what is built now is what an undisturbed lake gives."""
    wrong = []
    for dataset in list_datasets(site.datasets, TENANT, PERSONA):
        try:
            open_dataset(dataset.folder)
        except AttuneError as error:
            wrong.append(f"{dataset.manifest.dataset_id}: {error.message}")
    unfinished = [each.name for each in site.datasets.glob("d-*") if not (each / "manifest.json").exists()]
    if unfinished:
        wrong.append(f"datasets without a manifest: {unfinished}")
    ids = []
    for each, folder in ((lake, "again"), (clean, "clean")):
        with open_snapshot(each) as snapshot:
            built = build_dataset(
                snapshot,
                site.folder / folder / "datasets",
                tenant=TENANT,
                persona=PERSONA,
                recipe=load_recipe("thumbs"),
                rules=RULES,
                split_key=SPLIT_KEY,
                now_unix_ms=_NOW_UNIX_MS,
            )
        ids.append(built.manifest.dataset_id)
    if ids[0] != ids[1]:
        wrong.append(f"the lake gives the dataset {ids[0]}, the same events without faults {ids[1]}")
    return wrong
