"""Deleting rows from the lake's tables, so that nothing of them is left: no earlier version, no file that nobody names.

Rows are deleted by a commit that rewrites the files they stood in; then the files that the newest version does not name
are deleted at once, whatever the history. Who reads an earlier version at that moment is refused, and reads the newest.
Delta's log holds no values of the columns that say something of people (merge.py).
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from attune.errors import Unavailable
from attune.lake.checksums import forget_checksums
from attune.lake.delta import load_table, said_of
from attune.lake.merge import LAYOUT, commit_layout, data_files, removal, rows_of, write_anew
from attune.lake.place import Place

logger = logging.getLogger(__name__)

_TRIES = 5
# Who writes a file has written it whole, and committed it, long before.
_UNFINISHED_SECONDS = 60
_DAY_HOURS = 24


@dataclass(frozen=True)
class Purged:
    """Files that were deleted; `waiting` are those with such rows that somebody may still be writing."""

    files: int
    waiting: int


def delete_rows(place: Place, wanted: pc.Expression) -> int:
    """How many went. Raises Unavailable when other writers are always first, or the store fails."""
    for _ in range(_TRIES):
        try:
            return _delete(load_table(place), wanted)
        except CommitFailedError:
            continue
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise Unavailable(f"{place} cannot be written: {said_of(error)}") from error
    raise Unavailable(f"{place} is changed by others all the time", retry_after_seconds=1)


def _delete(handle: DeltaTable, wanted: pc.Expression) -> int:
    """In one commit, which Delta refuses when another process rewrote files meanwhile."""
    done = handle.transaction_version(LAYOUT) or 0
    dataset = handle.to_pyarrow_dataset()
    actions: list[AddAction | RemoveAction] = []
    deleted = 0
    for file in data_files(handle):
        rows = rows_of(dataset, file)
        count = rows.count_rows(filter=wanted)
        if not count:
            continue
        deleted += count
        actions.append(removal(file, changed=True))
        if count < rows.count_rows():
            kept = pc.invert(pc.coalesce(wanted, pa.scalar(False)))
            actions.append(write_anew(dataset, [file], changed=True, wanted=kept))
    if actions:
        commit_layout(handle, actions, done)
    return deleted


def purge(place: Place, event_ids: frozenset[str] = frozenset()) -> Purged:
    """Deletes every file of the table that its newest version does not name, and torn commits that were set aside.

    A frozen writer that comes back finds its commit refused: what it had read is in the table already, or dropped. In
    an object store, files that a writer left when it died are deleted once they are a day old.
    """
    try:
        handle = load_table(place)
        files = len(handle.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False))
        if not isinstance(place, Path):
            return Purged(files + len(handle.vacuum(full=True, retention_hours=_DAY_HOURS, dry_run=False)), 0)
    except (DeltaError, OSError) as error:
        raise Unavailable(f"{place} cannot be written: {said_of(error)}") from error
    waiting = 0
    for file in _unnamed(place, handle):
        if _is_old(file):
            file.unlink(missing_ok=True)
            files += 1
        elif event_ids and _has_events(file, event_ids):
            waiting += 1
    for torn in (place / "_torn").glob("*"):
        torn.unlink(missing_ok=True)
        files += 1
    forget_checksums(place)
    return Purged(files, waiting)


def _unnamed(folder: Path, handle: DeltaTable) -> Iterator[Path]:
    named = {file.name for file in data_files(handle)}
    for file in folder.rglob("*.parquet"):
        name = file.relative_to(folder)
        if not name.parts[0].startswith("_") and name.as_posix() not in named:
            yield file


def _is_old(file: Path) -> bool:
    try:
        return time.time() - file.stat().st_mtime > _UNFINISHED_SECONDS
    except FileNotFoundError:
        return False


def _has_events(file: Path, event_ids: frozenset[str]) -> bool:
    """Whether a Parquet file has rows of these; one that cannot be read might."""
    try:
        with pq.ParquetFile(file) as parquet:
            return any(
                not event_ids.isdisjoint(batch["event_id"].to_pylist())
                for batch in parquet.iter_batches(columns=["event_id"])
            )
    except (OSError, pa.ArrowException, KeyError):
        return True
