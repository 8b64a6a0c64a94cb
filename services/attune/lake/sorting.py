"""Sorting more rows than memory holds."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_BUCKETS = 64


def sorted_rows(rows: pa.RecordBatchReader, column: str, chunk_rows: int, folder: Path) -> Iterator[pa.RecordBatch]:
    """The rows in the order of a column of hexadecimal digests, in chunks of that many; the last may be shorter.

    They are dealt into files by the digest's first byte, which spreads them evenly; one file at a time is then sorted
    in memory. The folder is made, and removed at the end.
    """
    folder.mkdir()
    deal(rows, column, folder)
    waiting = pa.table({field.name: pa.array([], field.type) for field in rows.schema})
    for file in sorted(folder.iterdir()):
        with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as reader:
            bucket = reader.read_all()
        file.unlink()
        waiting = pa.concat_tables([waiting, bucket.take(pc.sort_indices(bucket, [(column, "ascending")]))])
        whole = waiting.num_rows - waiting.num_rows % chunk_rows
        yield from _chunks(waiting.slice(0, whole), chunk_rows)
        waiting = waiting.slice(whole)
    yield from _chunks(waiting, chunk_rows)
    folder.rmdir()


def deal(rows: pa.RecordBatchReader, column: str, folder: Path) -> None:
    """Each row into the file of its bucket."""
    files: dict[int, tuple[pa.OSFile, pa.RecordBatchWriter]] = {}
    try:
        for batch in rows:
            if not batch.num_rows:
                continue
            buckets = _buckets(batch.column(column))
            order = np.argsort(buckets, kind="stable")
            dealt = batch.take(pa.array(order))
            there, begins = np.unique(buckets[order], return_index=True)
            for bucket, begin, end in zip(there, begins, [*begins[1:], batch.num_rows], strict=True):
                if bucket not in files:
                    file = pa.OSFile(str(folder / f"{bucket:03d}"), "wb")
                    files[bucket] = file, pa.ipc.new_stream(file, rows.schema)
                files[bucket][1].write_batch(dealt.slice(begin, end - begin))
    finally:
        for file, writer in files.values():
            writer.close()
            file.close()


def _buckets(digests: pa.Array) -> np.ndarray:
    """0 to _BUCKETS - 1, in the order of the digests."""
    first = pc.utf8_slice_codeunits(digests, 0, 2).to_pylist()
    return np.array([int(byte, 16) * _BUCKETS // 256 for byte in first], dtype=np.int16)


def _chunks(table: pa.Table, chunk_rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, table.num_rows, chunk_rows):
        yield table.slice(start, chunk_rows).combine_chunks().to_batches()[0]
