"""Merging small files of a table into larger ones.

deltalake's own compaction is not used: of two that merge the same files at once it refuses neither, and every row is
there twice. Here each merge carries an application transaction that all merges share, so Delta refuses the commit of
one that another has overtaken. Who appends is never in its way, and who deletes rows goes before it.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.transaction import AddAction, RemoveAction

_LAYOUT = "attune/layout"
_GROUP_BYTES = 32 << 20
_STATISTICS_CHARACTERS = 64


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
    done = handle.transaction_version(_LAYOUT) or 0
    dataset = handle.to_pyarrow_dataset()
    partition = dict(files[0].partition)
    folder = files[0].name.rpartition("/")[0]
    name = f"{folder}/".lstrip("/") + f"part-{secrets.token_hex(16)}.zstd.parquet"
    statistics = _Statistics()
    size = _write(dataset, name, _rows(dataset, files, tuple(partition)), statistics)
    now_unix_ms = int(time.time() * 1000)
    added = AddAction(name, size, partition, now_unix_ms, False, statistics.as_json())
    removed = [RemoveAction(file.name, False, now_unix_ms, file.bytes, partition) for file in files]
    handle.create_write_transaction(
        [added, *removed],
        "append",
        handle.schema(),
        partition_by=list(partition),
        commit_properties=CommitProperties(app_transactions=[Transaction(_LAYOUT, done + 1)]),
    )
    handle.update_incremental()


def _rows(dataset: ds.FileSystemDataset, files: Sequence[DataFile], without: Sequence[str]) -> Iterator[pa.RecordBatch]:
    columns = [name for name in dataset.schema.names if name not in without]
    fragments = {fragment.path: fragment for fragment in dataset.get_fragments()}
    for file in files:
        one = ds.FileSystemDataset([fragments[file.name]], dataset.schema, dataset.format, dataset.filesystem)
        yield from one.scanner(columns=columns, batch_readahead=1, fragment_readahead=1).to_batches()


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
    """What Delta's log says of a file, so that readers can pass it by: of numbers and of short texts."""

    def __init__(self) -> None:
        self._rows = 0
        self._least: dict[str, Any] = {}
        self._greatest: dict[str, Any] = {}
        self._nulls: dict[str, int] = {}
        self._unbounded: set[str] = set()

    def add(self, rows: pa.Table) -> None:
        self._rows += rows.num_rows
        for field in rows.schema:
            if pa.types.is_integer(field.type) or pa.types.is_string(field.type):
                self._add(field.name, rows[field.name])

    def _add(self, name: str, column: pa.ChunkedArray) -> None:
        self._nulls[name] = self._nulls.get(name, 0) + column.null_count
        bounds = pc.min_max(column).as_py()
        least, greatest = bounds["min"], bounds["max"]
        if least is None:
            return
        if any(isinstance(bound, str) and len(bound) > _STATISTICS_CHARACTERS for bound in (least, greatest)):
            self._unbounded.add(name)
        self._least[name] = min(least, self._least.get(name, least))
        self._greatest[name] = max(greatest, self._greatest.get(name, greatest))

    def as_json(self) -> str:
        return json.dumps(
            {
                "numRecords": self._rows,
                "minValues": {name: value for name, value in self._least.items() if name not in self._unbounded},
                "maxValues": {name: value for name, value in self._greatest.items() if name not in self._unbounded},
                "nullCount": self._nulls,
            }
        )
