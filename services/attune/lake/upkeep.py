"""Keeping tables in shape: merging small files, deleting what nobody can need any more, and saying what there is.

Safe beside any number of writers and readers: merging gives way to them, and nothing is deleted before the table's
history is over, so that whoever began to read a version before can read it to its end.
"""

import datetime
from collections.abc import Callable
from dataclasses import dataclass

from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError

from attune.errors import Unavailable
from attune.lake.checksums import forget_checksums
from attune.lake.delta import DAY, Conflict, LakeTable, said_of
from attune.lake.merge import data_files

_TARGET_BYTES = 128 << 20
# Files of a commit that is still on its way stand in no version yet. None takes minutes; what is older was left by a
# writer that died.
_UNFINISHED_HOURS = 24

Told = Callable[[int, int], None]
"""The steps that are done, and how many there are."""


@dataclass(frozen=True)
class TableFigures:
    """What a version of a table holds; from its log, no data is read."""

    name: str
    version: int
    rows: int
    files: int
    small_files: int
    bytes: int
    days: tuple[datetime.date, ...]
    changed_unix_ms: int


@dataclass(frozen=True)
class Optimized:
    """What a round did to one table."""

    merged_files: int = 0
    into_files: int = 0
    deleted_files: int = 0


def figures_of(name: str, handle: DeltaTable) -> TableFigures:
    files = data_files(handle)
    days = {dict(file.partition).get(DAY) for file in files} - {None}
    return TableFigures(
        name=name,
        version=int(handle.version()),
        rows=sum(file.rows for file in files),
        files=len(files),
        small_files=sum(file.bytes < _TARGET_BYTES // 2 for file in files),
        bytes=sum(file.bytes for file in files),
        days=tuple(sorted(datetime.date.fromisoformat(str(day)) for day in days)),
        changed_unix_ms=max((file.written_unix_ms for file in files), default=0),
    )


def optimize(table: LakeTable, told: Told = lambda _done, _of: None) -> Optimized:
    """Merges each day's small files, then deletes what is older than the history.

    Raises Conflict when another process rewrites the same table, Unavailable when the store fails; what was done by
    then stays.
    """
    merged = into = 0
    for step in table.merge(_TARGET_BYTES):
        merged, into = merged + step.files, into + 1
        told(step.number, step.of + 1)
        table.sync()
    deleted = _delete_what_is_over(table)
    told(into + 1, into + 1)
    return Optimized(merged, into, deleted)


def _delete_what_is_over(table: LakeTable) -> int:
    try:
        deleted = table.handle.vacuum(dry_run=False)
        hours = max(_UNFINISHED_HOURS, table.history_hours)
        deleted += table.handle.vacuum(full=True, retention_hours=hours, dry_run=False)
    except CommitFailedError as error:
        raise Conflict(f"another process changed {table.name}") from error
    except (DeltaError, OSError) as error:
        raise Unavailable(f"{table.place} cannot be written: {said_of(error)}") from error
    if table.folder is not None:
        forget_checksums(table.folder)
    table.sync()
    return len(deleted)
