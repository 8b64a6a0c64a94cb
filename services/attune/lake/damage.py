"""Files of a table that are not there, or not as they were written.

What an object store holds it checks itself: there only what is missing is found.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from attune import metrics
from attune.errors import Aborted, DataLoss, Unavailable
from attune.files import sync
from attune.lake.checksums import fault_of
from attune.lake.delta import LakeTable, said_of
from attune.lake.merge import data_files
from attune.lake.place import Place

logger = logging.getLogger(__name__)

_SET_ASIDE = "_damaged"
_FIRST = 3


@dataclass(frozen=True)
class DamagedFile:
    """One file, how many rows are in it, and what is wrong."""

    name: str
    rows: int
    reason: str


def find_damage(
    place: Place, handle: DeltaTable, told: Callable[[int, int], None] = lambda _done, _of: None
) -> list[DamagedFile]:
    """Reads every file of the version that the handle stands on; `told` is called with bytes. Raises Unavailable."""
    found = list(_not_as_written(place, handle, told)) if isinstance(place, Path) else _missing(place, handle)
    metrics.LAKE_DAMAGED_FILES.labels(place.name).set(len(found))
    return found


def check_undamaged(tables: Iterable[tuple[Place, DeltaTable]]) -> None:
    """Raises DataLoss that names what is damaged."""
    for place, handle in tables:
        if found := find_damage(place, handle):
            names = ", ".join(f"{file.name} ({file.reason})" for file in found[:_FIRST])
            more = f" and {len(found) - _FIRST} more" if len(found) > _FIRST else ""
            raise DataLoss(f"{place} is damaged: {names}{more}; see `attune lake check`")


def leave_out_damage(table: LakeTable) -> list[DamagedFile]:
    """Takes the damaged files out of the table, so that the rest can be read; local ones are kept in `_damaged`.

    Their rows are lost to the lake: the offsets stay where they are. Raises Aborted when another process changes the
    table meanwhile.
    """
    found = find_damage(table.place, table.handle)
    if not found:
        return found
    if table.folder is not None:
        for file in found:
            _set_aside(table.folder, file.name)
    try:
        table.handle.repair()
    except DeltaError as error:
        raise Aborted(f"{table.name} was changed by another process: {said_of(error)}") from error
    except OSError as error:
        raise Unavailable(f"{table.place} cannot be written: {said_of(error)}") from error
    table.sync()
    for file in found:
        logger.error("a damaged file was left out", extra={"table": table.name, "file": file.name, "rows": file.rows})
    metrics.LAKE_DAMAGED_FILES.labels(table.name).set(0)
    return found


def _missing(place: Place, handle: DeltaTable) -> list[DamagedFile]:
    try:
        gone = set(handle.repair(dry_run=True)["files_removed"])
    except (DeltaError, OSError) as error:
        raise Unavailable(f"{place} cannot be read: {said_of(error)}") from error
    return [DamagedFile(file.name, file.rows, "missing") for file in data_files(handle) if file.name in gone]


def _not_as_written(folder: Path, handle: DeltaTable, told: Callable[[int, int], None]) -> Iterator[DamagedFile]:
    files = data_files(handle)
    done_bytes, all_bytes = 0, sum(file.bytes for file in files)
    for file in files:
        told(done_bytes, all_bytes)
        if reason := fault_of(folder, file.name, file.bytes):
            yield DamagedFile(file.name, file.rows, reason)
        done_bytes += file.bytes
    told(all_bytes, all_bytes)


def _set_aside(folder: Path, name: str) -> None:
    target = folder / _SET_ASIDE / name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        (folder / name).replace(target)
    except FileNotFoundError:
        return
    sync(target.parent)
    sync((folder / name).parent)
