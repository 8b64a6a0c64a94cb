"""Merging small files of a table into larger ones.

deltalake's own compaction is not used: of two that merge the same files at once it refuses neither, and every row is
there twice. Here each merge carries an application transaction that all merges share, so Delta refuses the commit of
one that another has overtaken. Who appends is never in its way, and who deletes rows goes before it.
"""

import contextlib
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.transaction import AddAction, RemoveAction

from attune.clock import now_unix_ms

LAYOUT = "attune/layout"
"""The application transaction of all that rewrite files: of two at once Delta refuses one."""

STATISTICS = ("log_id", "log_partition", "log_offset")
"""The columns whose least and greatest values Delta's log has; none says anything of people, and old entries stay."""

_GROUP_BYTES = 32 << 20


@dataclass(frozen=True)
class DataFile:
    """A file of a table, by its name relative to it; `partition` has the values of the partition's columns as text."""

    name: str
    bytes: int
    rows: int
    written_unix_ms: int
    partition: tuple[tuple[str, str | None], ...]


def data_files(handle: DeltaTable) -> list[DataFile]:
    """Of this version, from the table's log."""
    actions = pa.table(handle.get_add_actions())
    columns = [actions[name].to_pylist() for name in ("path", "size_bytes", "num_records", "modification_time")]
    partitions = actions["partition"].to_pylist() if "partition" in actions.column_names else [{}] * len(actions)
    return [
        DataFile(name, size, rows or 0, written, _as_text(values or {}))
        for name, size, rows, written, values in zip(*columns, partitions, strict=True)
    ]


def _as_text(values: dict[str, Any]) -> tuple[tuple[str, str | None], ...]:
    return tuple((name, None if value is None else str(value)) for name, value in values.items())


def plan_merges(files: Iterable[DataFile], target_bytes: int) -> list[list[DataFile]]:
    """What to make one file of each: files smaller than half of the target, of one partition, as they came."""
    small = [file for file in files if file.bytes < target_bytes // 2]
    small.sort(key=lambda file: (str(file.partition), file.written_unix_ms, file.name))
    merges: list[list[DataFile]] = []
    room = 0
    for file in small:
        if not merges or merges[-1][0].partition != file.partition or file.bytes > room:
            merges.append([])
            room = target_bytes
        merges[-1].append(file)
        room -= file.bytes
    return [merge for merge in merges if len(merge) > 1]


def merge_files(handle: DeltaTable, files: Sequence[DataFile]) -> None:
    """Makes one file of these, which are of one partition, in one commit on this handle.

    Raises CommitFailedError when another process merged or deleted meanwhile. The new file then belongs to no version,
    and goes when what no version names is deleted: a commit may also have failed after it was made.
    """
    done = handle.transaction_version(LAYOUT) or 0
    added = write_anew(handle.to_pyarrow_dataset(), files, changed=False)
    removed = [removal(file, changed=False) for file in files]
    commit_layout(handle, [added, *removed], done)
    handle.update_incremental()


def write_anew(
    dataset: ds.FileSystemDataset, files: Sequence[DataFile], *, changed: bool, wanted: pc.Expression | None = None
) -> AddAction:
    """One file of these, which are of one partition, or of their rows that are wanted; no version names it yet."""
    partition = dict(files[0].partition)
    folder = files[0].name.rpartition("/")[0]
    name = f"{folder}/".lstrip("/") + f"part-{secrets.token_hex(16)}.zstd.parquet"
    statistics = _Statistics()
    size = _write(dataset, name, _rows(dataset, files, tuple(partition), wanted), statistics)
    return AddAction(name, size, partition, now_unix_ms(), changed, statistics.as_json())


def removal(file: DataFile, *, changed: bool) -> RemoveAction:
    return RemoveAction(file.name, changed, now_unix_ms(), file.bytes, dict(file.partition))


def commit_layout(handle: DeltaTable, actions: Sequence[AddAction | RemoveAction], done: int) -> None:
    """Puts files in the place of others, if nobody has since the layout's transaction was `done`."""
    handle.create_write_transaction(
        list(actions),
        "append",
        handle.schema(),
        partition_by=list(handle.metadata().partition_columns),
        commit_properties=CommitProperties(app_transactions=[Transaction(LAYOUT, done + 1)]),
    )


def rows_of(dataset: ds.FileSystemDataset, file: DataFile) -> ds.FileSystemDataset:
    """The one file."""
    fragment = next(one for one in dataset.get_fragments() if one.path == file.name)
    return ds.FileSystemDataset([fragment], dataset.schema, dataset.format, dataset.filesystem)


def _rows(
    dataset: ds.FileSystemDataset, files: Sequence[DataFile], without: Sequence[str], wanted: pc.Expression | None
) -> Iterator[pa.RecordBatch]:
    columns = [name for name in dataset.schema.names if name not in without]
    fragments = {fragment.path: fragment for fragment in dataset.get_fragments()}
    for file in files:
        one = ds.FileSystemDataset([fragments[file.name]], dataset.schema, dataset.format, dataset.filesystem)
        yield from one.scanner(columns=columns, filter=wanted, batch_readahead=1, fragment_readahead=1).to_batches()


def _write(dataset: ds.FileSystemDataset, name: str, batches: Iterator[pa.RecordBatch], seen: "_Statistics") -> int:
    """The bytes of the file."""
    with dataset.filesystem.open_output_stream(name) as sink, contextlib.ExitStack() as stack:
        writer = None
        for group in _groups(batches):
            seen.add(group)
            if writer is None:
                writer = stack.enter_context(
                    pq.ParquetWriter(sink, group.schema, compression="zstd", write_page_checksum=True)
                )
            writer.write_table(group)
        stack.close()
        return int(sink.tell())


def _groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of some size, each a row group."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(part.nbytes for part in waiting) >= _GROUP_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


class _Statistics:
    """What Delta's log says of a file, so that readers can pass it by."""

    def __init__(self) -> None:
        self._rows = 0
        self._least: dict[str, Any] = {}
        self._greatest: dict[str, Any] = {}
        self._nulls: Counter[str] = Counter()

    def add(self, rows: pa.Table) -> None:
        self._rows += rows.num_rows
        for name in STATISTICS:
            if name not in rows.schema.names:
                continue
            self._nulls[name] += rows[name].null_count
            bounds = pc.min_max(rows[name]).as_py()
            least, greatest = bounds["min"], bounds["max"]
            if least is not None:
                self._least[name] = min(least, self._least.get(name, least))
                self._greatest[name] = max(greatest, self._greatest.get(name, greatest))

    def as_json(self) -> str:
        return json.dumps(
            {
                "numRecords": self._rows,
                "minValues": self._least,
                "maxValues": self._greatest,
                "nullCount": self._nulls,
            }
        )
