"""One Delta table: rows are appended together with the offsets that they came from, so each comes in exactly once.

A commit carries, as a Delta application transaction, the next offset of the source that it covers. The stored offset is
compared with the batch's first one on the very handle that writes: if another process commits in between, Delta refuses
this handle's commit, because both carry a transaction of the same name. Never refresh the handle between the two.

Tables may be partitioned by `day`, the one on which rows came in (UTC): whatever times events claim, a commit adds one
file, and days that are over change no more.
"""

import datetime
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import (
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from attune.errors import Aborted, DataLoss, Unavailable
from attune.files import sync, sync_tree
from attune.lake.checksums import fault_of, note_checksums
from attune.lake.merge import STATISTICS, DataFile, data_files, merge_files, plan_merges
from attune.lake.place import Place, options_of
from attune.lake.repair import set_torn_commits_aside

logger = logging.getLogger(__name__)

DAY = "day"
HISTORY_HOURS = 6
"""How long replaced files and earlier versions are kept, where nobody says otherwise."""

# A commit twice a second makes many small files; this bounds how many there are at any time.
_MERGE_FILES = 64
_MERGE_TARGET_BYTES = 16 << 20
_LOOKS = 3
# Of ids, texts and tokens hardly any come twice: looking for those that do takes half of the time of writing. What has
# few values keeps its dictionary, and what is looked up its least and greatest value.
_FEW_VALUES = (
    *("log_id", "log_partition", "schema_version", "tenant", "persona", "persona_version", "policy_id", "source"),
    *("logprobs_mode", "finish_reason", "base_model_hash", "tokenizer_hash", "chat_template_hash", "tool_choice"),
    *("response_format", "conversation_id", "end_user", "kind", "thumb", "name", "author", "guideline_version"),
    *("messages.list.element.role", "topic", "reason"),
)
_LOOKED_UP = ("log_offset", "event_id", "response_id", "created_unix_ms", "received_unix_ms", "payload_sha256")
_PARQUET = WriterProperties(
    compression="SNAPPY",
    default_column_properties=ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE"),
    column_properties={
        **dict.fromkeys(_FEW_VALUES, ColumnProperties(dictionary_enabled=True, statistics_enabled="CHUNK")),
        **dict.fromkeys(_LOOKED_UP, ColumnProperties(dictionary_enabled=False, statistics_enabled="CHUNK")),
    },
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m|[│├╰╭─↳▶]")
_SAID_CHARACTERS = 500


def today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


class Conflict(Aborted):
    """Another writer was first: the batch is not written, and the handle has to be loaded anew."""


@dataclass(frozen=True)
class Merged:
    """So many files became one; the merge's number, and how many there are."""

    files: int
    number: int
    of: int


class LakeTable:
    """Opens the table in a place, or makes it; the handle for one writer. Not thread-safe.

    Raises DataLoss when the place holds no readable table, Unavailable when the store cannot be used at the moment.
    """

    def __init__(
        self,
        place: Place,
        schema: pa.Schema,
        *,
        by_day: bool = False,
        history_hours: int = HISTORY_HOURS,
        today: Callable[[], datetime.date] = today,
    ) -> None:
        self.place = place
        self._schema = schema.append(pa.field(DAY, pa.date32())) if by_day else schema
        self._partition_by = [DAY] if by_day else []
        self.history_hours = history_hours
        self._history = _history(history_hours)
        self._today = today
        if isinstance(place, Path):
            set_torn_commits_aside(place)
        self._handle = self._open()
        self._synced_version = -1
        self._synced_days: set[Path] = set()
        self._files_left_by_merging = 0

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def folder(self) -> Path | None:
        """Of a table on this machine's disks."""
        return self.place if isinstance(self.place, Path) else None

    @property
    def handle(self) -> DeltaTable:
        """For reading only; it is the version that this writer stands on."""
        return self._handle

    @property
    def version(self) -> int:
        return int(self._handle.version())

    def read(self, columns: list[str], since: datetime.date | None = None) -> pa.Table:
        """Every row as ingested, at the version that this writer stands on; or those that came in since that day."""
        with _reported(self.place):
            return self._files_since(since).to_table(columns=columns)

    def read_where(self, wanted: pc.Expression, columns: Sequence[str]) -> pa.Table:
        """Rows, as ingested, of which an expression holds."""
        with _reported(self.place):
            return self._handle.to_pyarrow_dataset().to_table(columns=list(columns), filter=wanted)

    def find(
        self, column: str, values: Sequence[Any], columns: Sequence[str], since: datetime.date | None = None
    ) -> pa.Table:
        """Rows, as ingested, whose column has one of the values."""
        wanted = pc.field(column).isin(pa.array(values, self._schema.field(column).type))
        with _reported(self.place):
            return self._files_since(since).to_table(columns=list(columns), filter=wanted)

    def day_of_newest(self, rows: int) -> datetime.date | None:
        """A day since which at least so many rows came in; None: it takes all there are."""
        with _reported(self.place):
            files = data_files(self._handle)
        found = 0
        for file in sorted(files, key=lambda file: file.partition, reverse=True):
            found += file.rows
            day = dict(file.partition).get(DAY)
            if found >= rows and day is not None:
                return datetime.date.fromisoformat(day)
        return None

    def _files_since(self, since: datetime.date | None) -> Any:
        recent = None if since is None else [(DAY, ">=", since.isoformat())]
        return self._handle.to_pyarrow_dataset(file_pruning_predicate=recent)

    def count(self) -> int:
        """How many rows there are, as ingested; from the table's log, no file is read."""
        with _reported(self.place):
            return int(self._handle.count())

    def next_offset(self, source: str) -> int:
        """The offset that the next batch of this source has to begin with; 0 for a source never seen."""
        with _reported(self.place):
            return self._handle.transaction_version(source) or 0

    def append(self, rows: pa.Table, source: str, first: int, following: int) -> None:
        """Writes the rows, and that the source goes on at `following`, in one commit; no rows still move the offset.

        Raises Conflict when the source does not stand at `first`, or another writer moves it meanwhile; Unavailable
        when the store fails, and then the batch may or may not be there: reload and look at next_offset.
        """
        stored = self.next_offset(source)
        if stored != first:
            raise Conflict(f"{self.name} stands at {stored} of {source}, not at {first}")
        if self._partition_by:
            rows = rows.append_column(DAY, pa.repeat(pa.scalar(self._today(), pa.date32()), rows.num_rows))
        properties = CommitProperties(app_transactions=[Transaction(source, following)])
        try:
            write_deltalake(self._handle, rows, mode="append", commit_properties=properties, writer_properties=_PARQUET)
        except CommitFailedError as error:
            raise Conflict(f"another writer moved {source} in {self.name}") from error
        except (DeltaError, OSError) as error:
            raise Unavailable(f"{self.name} cannot be written: {said_of(error)}") from error

    def reload(self) -> None:
        """Takes a fresh handle on the newest version."""
        self._handle = self._open()

    def sync(self) -> None:
        """Makes every commit up to this handle's version durable; the first time, whatever is in the folder.

        What an object store has acknowledged is durable.
        """
        version = self.version
        if version == self._synced_version or self.folder is None:
            return
        if self._synced_version < 0 or not self._sync_commits(
            self.folder, range(self._synced_version + 1, version + 1)
        ):
            with suppress(FileNotFoundError):  # another process tidied it away, and notes what it put in its place
                note_checksums(self.folder, self.files())
            sync_tree(self.folder)
        self._synced_version = version

    def files(self) -> list[str]:
        """The data files of this version, named relative to the table."""
        with _reported(self.place):
            return [file.name for file in data_files(self._handle)]

    def _sync_commits(self, folder: Path, versions: range) -> bool:
        """False when some commit's entry is no longer there to tell which files it brought."""
        log = folder / "_delta_log"
        for version in versions:
            entry = log / f"{version:020d}.json"
            try:
                actions = [json.loads(line) for line in entry.read_text().splitlines()]
                added = [unquote(action["add"]["path"]) for action in actions if "add" in action]
                note_checksums(folder, added)
                for name in added:
                    sync(folder / name)
                days = {(folder / name).parent for name in added}
                for day in days:
                    sync(day)
            except FileNotFoundError:
                return False
            sync(entry)
            if (checkpoint := log / f"{version:020d}.checkpoint.parquet").exists():
                sync(checkpoint)
                sync(log / "_last_checkpoint")
            if not days <= self._synced_days:
                sync(folder)
                self._synced_days |= days
        sync(log)
        return True

    def tidy(self) -> None:
        """Merges small files once there are many; gives way to other writers."""
        files = len(self._handle.file_uris())
        if files - self._files_left_by_merging < _MERGE_FILES:
            return
        try:
            for _ in self.merge(_MERGE_TARGET_BYTES):
                pass
        except (Conflict, Unavailable, DataLoss) as error:
            logger.warning("merging gave way", extra={"table": self.name, "reason": error.message})
            self.reload()
        self._files_left_by_merging = len(self._handle.file_uris())
        self.sync()

    def merge(self, target_bytes: int) -> Iterator[Merged]:
        """Makes large files of small ones, a commit at a time; says of each how far it is. Changes no rows.

        A damaged file is left as it is. Raises Conflict when another process rewrites the same table, Unavailable or
        DataLoss when files cannot be read or written.
        """
        merges = plan_merges(self._undamaged(data_files(self._handle)), target_bytes)
        for number, files in enumerate(merges, 1):
            with _reported(self.place):
                try:
                    merge_files(self._handle, files)
                except CommitFailedError as error:
                    raise Conflict(f"another process rewrote {self.name}") from error
            yield Merged(len(files), number, len(merges))

    def _undamaged(self, files: list[DataFile]) -> list[DataFile]:
        """A flipped bit is not to be written anew, with a checksum that says that it is right."""
        if self.folder is None:
            return files
        return [file for file in files if not fault_of(self.folder, file.name, file.bytes)]

    def _open(self) -> DeltaTable:
        with _reported(self.place):
            try:
                return self._as_it_should_be(load_table(self.place))
            except TableNotFoundError:
                if isinstance(self.place, Path):
                    self.place.mkdir(parents=True, exist_ok=True)
                with suppress(CommitFailedError):  # another process made it first
                    DeltaTable.create(
                        str(self.place),
                        self._schema,
                        mode="ignore",
                        partition_by=self._partition_by,
                        configuration=self._history,
                        storage_options=options_of(self.place),
                    )
                return load_table(self.place)

    def _as_it_should_be(self, handle: DeltaTable) -> DeltaTable:
        """With the history that is to be kept, and every column."""
        handle = self._with_every_column(handle)
        if self._history.items() <= handle.metadata().configuration.items():
            return handle
        with suppress(CommitFailedError):  # another process was first
            handle.alter.set_table_properties(self._history)
        return load_table(self.place)

    def _with_every_column(self, handle: DeltaTable) -> DeltaTable:
        """Adds the columns, and parts of columns, that an older version did not know; in older rows they are null."""
        if _covers(pa.struct(pa.schema(handle.schema().to_arrow())), pa.struct(self._schema)):
            return handle
        with suppress(CommitFailedError):  # another process added them first
            write_deltalake(handle, self._schema.empty_table(), mode="append", schema_mode="merge")
        return load_table(self.place)


def _covers(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether one has every part of the other, whatever their order."""
    if pa.types.is_struct(wanted):
        parts = {part.name: part.type for part in found}
        return all(part.name in parts and _covers(parts[part.name], part.type) for part in wanted)
    if pa.types.is_list(wanted):
        return _covers(found.value_type, wanted.value_type)
    return True


def _history(hours: int) -> dict[str, str]:
    """Table properties: for so long what was replaced can still be read, by whoever began before it was."""
    return {
        "delta.checkpointInterval": "100",
        "delta.dataSkippingStatsColumns": ",".join(STATISTICS),
        "delta.logRetentionDuration": f"interval {hours} hours",
        "delta.deletedFileRetentionDuration": f"interval {hours} hours",
    }


def load_table(place: Place) -> DeltaTable:
    """The newest version; raises TableNotFoundError when there is none.

    A listing of the log that is taken while others commit may miss an entry and have the one after it: what looks
    damaged is looked at again.
    """
    for _ in range(_LOOKS - 1):
        with suppress(DeltaError):
            return DeltaTable(str(place), storage_options=options_of(place))
    return DeltaTable(str(place), storage_options=options_of(place))


def open_table(place: Place) -> DeltaTable | None:
    """The newest version, for reading; none before the table was made. Raises DataLoss or Unavailable."""
    try:
        with _reported(place):
            return load_table(place)
    except TableNotFoundError:
        return None


def said_of(error: Exception) -> str:
    """In one line: a store's refusal comes as a coloured tree with the answer's body below it."""
    return " ".join(_COLOURS.sub("", str(error)).split())[:_SAID_CHARACTERS]


@contextmanager
def _reported(place: Place) -> Iterator[None]:
    try:
        yield
    except TableNotFoundError:
        raise
    except DeltaError as error:
        raise DataLoss(f"{place} holds no readable table: {said_of(error)}") from error
    except (OSError, pa.ArrowException) as error:
        raise Unavailable(f"{place} cannot be read: {said_of(error)}") from error
