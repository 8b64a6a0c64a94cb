"""Looking through every file of a data folder for ids: what Parquet packs is unpacked, the rest is read as it is."""

import mmap
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_RESPONSE_ID = re.compile(rb"r-[0-9a-f]{32}-[0-9a-f]{16}")


@dataclass
class Searched:
    """How many files were looked through, and those in which something was found, relative to the folder."""

    files: int = 0
    hits: set[str] = field(default_factory=set)


def search(folder: Path, ids: Collection[str], skipped: Collection[Path] = ()) -> Searched:
    """A file that goes away meanwhile has nothing in it."""
    result = Searched()
    wanted = {name.encode() for name in ids if name}
    for file in _files(folder, skipped):
        try:
            hit = _in_parquet(file, wanted) if file.suffix == ".parquet" else _in_bytes(file, wanted)
        except FileNotFoundError:
            continue
        result.files += 1
        if hit:
            result.hits.add(str(file.relative_to(folder)))
    return result


def _files(folder: Path, skipped: Collection[Path]) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.is_symlink() and not any(file.is_relative_to(one) for one in skipped):
            yield file


def _in_bytes(file: Path, wanted: set[bytes]) -> bool:
    """Response ids, of which there may be many, are found all at once by their form."""
    if not file.stat().st_size:
        return False
    others = [name for name in wanted if not _RESPONSE_ID.fullmatch(name)]
    with file.open("rb") as content, mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as held:
        if any(held.find(name) >= 0 for name in others):
            return True
        return len(others) < len(wanted) and any(match[0] in wanted for match in _RESPONSE_ID.finditer(held))


def _in_parquet(file: Path, wanted: set[bytes]) -> bool:
    try:
        with pq.ParquetFile(file) as parquet:
            return any(
                not wanted.isdisjoint(_texts(column))
                for batch in parquet.iter_batches(batch_size=10_000)
                for column in batch.columns
            )
    except pa.ArrowException:
        return _in_bytes(file, wanted)


def _texts(column: pa.Array) -> Iterator[bytes]:
    """Of a column of any make, each text once."""
    kind = column.type
    if pa.types.is_map(kind):
        yield from _texts(column.keys)
        yield from _texts(column.items)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _texts(column.flatten())
    elif pa.types.is_struct(kind):
        for part in column.flatten():
            yield from _texts(part)
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        yield from (
            value.encode() if isinstance(value, str) else value for value in pc.unique(column.drop_null()).to_pylist()
        )
