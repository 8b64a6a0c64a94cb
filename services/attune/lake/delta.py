"""One Delta table: rows are appended together with the offsets that they came from, so each comes in exactly once.

A commit carries, as a Delta application transaction, the next offset of the source that it covers. The stored offset is
compared with the batch's first one on the very handle that writes: if another process commits in between, Delta refuses
this handle's commit, because both carry a transaction of the same name. Never refresh the handle between the two.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from attune.errors import Aborted, DataLoss, Unavailable
from attune.lake.durable import sync, sync_tree
from attune.lake.repair import set_torn_commits_aside

logger = logging.getLogger(__name__)

# A commit twice a second makes many small files; these bound how many there are at any time.
_CONFIGURATION = {"delta.checkpointInterval": "100", "delta.logRetentionDuration": "interval 6 hours"}
_COMPACT_FILES = 64
_COMPACT_TARGET_BYTES = 16 << 20
_COMPACTIONS_PER_VACUUM = 8
_LOOKS = 3
# How long a reader may hold on to files that a compaction has replaced.
_VACUUM_RETENTION_HOURS = 1


class Conflict(Aborted):
    """Another writer was first: the batch is not written, and the handle has to be loaded anew."""


class LakeTable:
    """Opens the table in a folder, or makes it; the handle for one writer. Not thread-safe.

    Raises DataLoss when the folder holds no readable table, Unavailable when the store cannot be used at the moment.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder = folder
        self._schema = schema
        set_torn_commits_aside(folder)
        self._handle = self._open()
        self._synced_version = -1
        self._files_left_by_compaction = 0
        self._compactions = 0

    @property
    def handle(self) -> DeltaTable:
        """For reading only; it is the version that this writer stands on."""
        return self._handle

    @property
    def version(self) -> int:
        return int(self._handle.version())

    def read(self, columns: list[str]) -> pa.Table:
        """Every row as ingested, at the version that this writer stands on."""
        with _reported(self._folder):
            return self._handle.to_pyarrow_table(columns=columns)

    def count(self) -> int:
        """How many rows there are, as ingested; from the table's log, no file is read."""
        with _reported(self._folder):
            return int(self._handle.count())

    def next_offset(self, source: str) -> int:
        """The offset that the next batch of this source has to begin with; 0 for a source never seen."""
        with _reported(self._folder):
            return self._handle.transaction_version(source) or 0

    def append(self, rows: pa.Table, source: str, first: int, following: int) -> None:
        """Writes the rows, and that the source goes on at `following`, in one commit; no rows still move the offset.

        Raises Conflict when the source does not stand at `first`, or another writer moves it meanwhile; Unavailable
        when the store fails, and then the batch may or may not be there: reload and look at next_offset.
        """
        stored = self.next_offset(source)
        if stored != first:
            raise Conflict(f"{self._folder.name} stands at {stored} of {source}, not at {first}")
        properties = CommitProperties(app_transactions=[Transaction(source, following)])
        try:
            write_deltalake(self._handle, rows, mode="append", commit_properties=properties)
        except CommitFailedError as error:
            raise Conflict(f"another writer moved {source} in {self._folder.name}") from error
        except (DeltaError, OSError) as error:
            raise Unavailable(f"{self._folder.name} cannot be written: {error}") from error

    def reload(self) -> None:
        """Takes a fresh handle on the newest version."""
        self._handle = self._open()

    def sync(self) -> None:
        """Makes every commit up to this handle's version durable; the first time, whatever is in the folder."""
        version = self.version
        if version == self._synced_version:
            return
        log = self._folder / "_delta_log"
        if self._synced_version < 0 or not self._sync_commits(log, range(self._synced_version + 1, version + 1)):
            sync_tree(self._folder)
        self._synced_version = version

    def _sync_commits(self, log: Path, versions: range) -> bool:
        """False when some commit's entry is no longer there to tell which files it brought."""
        for version in versions:
            entry = log / f"{version:020d}.json"
            try:
                actions = [json.loads(line) for line in entry.read_text().splitlines()]
                for action in actions:
                    if "add" in action:
                        sync(self._folder / unquote(action["add"]["path"]))
            except FileNotFoundError:
                return False
            sync(entry)
            if (checkpoint := log / f"{version:020d}.checkpoint.parquet").exists():
                sync(checkpoint)
                sync(log / "_last_checkpoint")
        sync(self._folder)
        sync(log)
        return True

    def tidy(self) -> None:
        """Merges small files once there are many, and now and then deletes what merging left behind.

        Carries no offsets and changes no rows. It gives way to any other writer.
        """
        files = len(self._handle.file_uris())
        if files - self._files_left_by_compaction < _COMPACT_FILES:
            return
        try:
            self._handle.optimize.compact(target_size=_COMPACT_TARGET_BYTES)
            self._compactions += 1
            if self._compactions % _COMPACTIONS_PER_VACUUM == 0:
                self._handle.vacuum(
                    retention_hours=_VACUUM_RETENTION_HOURS, dry_run=False, enforce_retention_duration=False
                )
        except (DeltaError, OSError) as error:
            logger.warning("compaction gave way", extra={"table": self._folder.name, "reason": str(error)})
            self.reload()
        self._files_left_by_compaction = len(self._handle.file_uris())
        self.sync()

    def _open(self) -> DeltaTable:
        with _reported(self._folder):
            try:
                return self._with_every_column(load_table(self._folder))
            except TableNotFoundError:
                self._folder.mkdir(parents=True, exist_ok=True)
                with suppress(CommitFailedError):  # another process made it first
                    DeltaTable.create(self._folder, self._schema, mode="ignore", configuration=_CONFIGURATION)
                return load_table(self._folder)

    def _with_every_column(self, handle: DeltaTable) -> DeltaTable:
        """Adds the columns that an older version did not know; in older rows they are null."""
        known = {field.name for field in handle.schema().fields}
        missing = [field for field in DeltaSchema.from_arrow(self._schema).fields if field.name not in known]
        if not missing:
            return handle
        with suppress(CommitFailedError):  # another process added them first
            handle.alter.add_columns(missing)
        return load_table(self._folder)


def load_table(folder: Path) -> DeltaTable:
    """The newest version; raises TableNotFoundError when there is none.

    A listing of the log that is taken while others commit may miss an entry and have the one after it: what looks
    damaged is looked at again.
    """
    for _ in range(_LOOKS - 1):
        with suppress(DeltaError):
            return DeltaTable(folder)
    return DeltaTable(folder)


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except TableNotFoundError:
        raise
    except DeltaError as error:
        raise DataLoss(f"{folder} holds no readable table: {error}") from error
    except (OSError, pa.ArrowException) as error:
        raise Unavailable(f"{folder} cannot be read: {error}") from error
