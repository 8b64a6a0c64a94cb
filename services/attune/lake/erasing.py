"""Deleting rows from the lake's tables, so that nothing of them is left: no earlier version, no file that nobody names.

Rows are deleted by a commit that rewrites the files they stood in; then the files that the newest version does not name
are deleted at once, whatever the history. Who reads an earlier version at that moment is refused, and reads the newest.
Delta's log holds no values of the columns that say something of people (merge.py).
"""

import contextlib
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
from pyarrow import fs

from attune.errors import Unavailable
from attune.lake.checksums import forget_checksums
from attune.lake.delta import load_table, said_of
from attune.lake.merge import LAYOUT, commit_layout, data_files, removal, rows_of, write_anew
from attune.lake.place import Place, files_of

logger = logging.getLogger(__name__)

_TRIES = 5
# Who writes a file has written it whole, and committed it, long before.
_UNFINISHED_SECONDS = 60
# A store has a clock of its own; it refuses who is more than 15 minutes away from it.
_UNFINISHED_IN_STORE_SECONDS = 1200


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

    A frozen writer that comes back finds its commit refused: what it had read is in the table already, or dropped.
    """
    try:
        handle = load_table(place)
        deleted = len(handle.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False))
        waiting = 0
        files = files_of(place)
        written_before = time.time() - (
            _UNFINISHED_SECONDS if isinstance(place, Path) else _UNFINISHED_IN_STORE_SECONDS
        )
        for file in _unnamed(files, handle):
            if file.mtime.timestamp() < written_before:
                with contextlib.suppress(FileNotFoundError):
                    files.delete_file(file.path)
                deleted += 1
            elif event_ids and _has_events(files, file.path, event_ids):
                waiting += 1
    except (DeltaError, OSError) as error:
        raise Unavailable(f"{place} cannot be written: {said_of(error)}") from error
    if isinstance(place, Path):
        for torn in (place / "_torn").glob("*"):
            torn.unlink(missing_ok=True)
            deleted += 1
        forget_checksums(place)
    return Purged(deleted, waiting)


def _unnamed(files: fs.FileSystem, handle: DeltaTable) -> Iterator[fs.FileInfo]:
    named = {file.name for file in data_files(handle)}
    for file in files.get_file_info(fs.FileSelector("", recursive=True)):
        # Delta's own files are in folders whose names begin with _.
        if file.path.endswith(".parquet") and not file.path.startswith("_") and file.path not in named:
            yield file


def _has_events(files: fs.FileSystem, name: str, event_ids: frozenset[str]) -> bool:
    """Whether a Parquet file has rows of these; one that cannot be read might."""
    try:
        with pq.ParquetFile(name, filesystem=files) as parquet:
            return any(
                not event_ids.isdisjoint(batch["event_id"].to_pylist())
                for batch in parquet.iter_batches(columns=["event_id"])
            )
    except (OSError, pa.ArrowException, KeyError):
        return True
