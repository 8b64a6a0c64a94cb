"""The one form that a dataset's rows have, whichever engine made them, and what they hash to."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from attune.errors import InvalidInput


def canonical_schema(schema: pa.Schema) -> pa.Schema:
    """The same columns with one type for each sort of value: engines differ in widths and in the names of parts."""
    return pa.schema([(field.name, _canonical(field.type, field.name)) for field in schema])


def _canonical(kind: pa.DataType, column: str) -> pa.DataType:
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.list_(_canonical(kind.value_type, column))
    if types.is_struct(kind):
        return pa.struct([(field.name, _canonical(field.type, column)) for field in kind])
    if types.is_integer(kind):
        return pa.int64()
    if types.is_string(kind) or types.is_large_string(kind):
        return pa.string()
    if types.is_boolean(kind) or types.is_float32(kind) or types.is_float64(kind):
        return kind
    raise InvalidInput(f"column {column} has values of type {kind}; a dataset takes none of those")


class RowsHash:
    """SHA-256 over what a dataset is made by and its rows in their order.

    Columns of `chunk_rows` rows at a time, lengths and values little-endian: the same for any slicing of the rows that
    come in and for any version of Arrow.
    """

    def __init__(self, definition: bytes, chunk_rows: int) -> None:
        self._digest = hashlib.sha256(definition)
        self._chunk_rows = chunk_rows
        self._whole = True

    def update(self, chunk: pa.RecordBatch) -> None:
        """The next rows; only the last chunk may be shorter than the others."""
        if not self._whole or chunk.num_rows > self._chunk_rows:
            raise ValueError(f"a chunk of {chunk.num_rows} rows where each but the last has {self._chunk_rows}")
        self._whole = chunk.num_rows == self._chunk_rows
        self._digest.update(chunk.num_rows.to_bytes(8, "little"))
        for name, column in zip(chunk.schema.names, chunk.columns, strict=True):
            self._digest.update(f"\0{name}\0".encode())
            _digest_column(column, self._digest)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _digest_column(column: pa.Array, digest: Any) -> None:
    """Absent values are marked before the rest, which then holds a default in their place."""
    kind = column.type
    digest.update(column.is_null().to_numpy(zero_copy_only=False).tobytes())
    if pa.types.is_list(kind):
        lengths = column.value_lengths().fill_null(0)
        digest.update(lengths.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        _digest_column(column.flatten(), digest)
    elif pa.types.is_struct(kind):
        for part in column.flatten():
            _digest_column(part, digest)
    elif pa.types.is_string(kind):
        encoded = column.fill_null("").cast(pa.binary())
        digest.update(pa.compute.binary_length(encoded).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        digest.update(b"".join(encoded.to_pylist()))
    else:
        values = column.fill_null(False if pa.types.is_boolean(kind) else 0).to_numpy(zero_copy_only=False)
        digest.update(np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"))).tobytes())
