"""Looking through every file of a folder or an object store for ids.

What Parquet packs is unpacked, the rest is read as it is.
"""

import contextlib
import mmap
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from attune.errors import Unavailable
from attune.lake.delta import said_of
from attune.lake.place import ObjectStore, files_of

_RESPONSE_ID = re.compile(rb"r-[0-9a-f]{32}-[0-9a-f]{16}")


@dataclass
class Searched:
    """How many files were looked through, and those in which something was found, relative to where it was."""

    files: int = 0
    hits: set[str] = field(default_factory=set)

    def __add__(self, other: "Searched") -> "Searched":
        return Searched(self.files + other.files, self.hits | other.hits)


def search(folder: Path, ids: Collection[str], skipped: Collection[Path] = ()) -> Searched:
    """A file that goes away meanwhile has nothing in it."""
    result = Searched()
    wanted = {name.encode() for name in ids if name}
    for file in _files(folder, skipped):
        try:
            hit = _in_parquet(file, wanted) if file.suffix == ".parquet" else _in_file(file, wanted)
        except FileNotFoundError:
            continue
        result.files += 1
        if hit:
            result.hits.add(str(file.relative_to(folder)))
    return result


def search_store(place: ObjectStore, ids: Collection[str]) -> Searched:
    """Its newest versions: what a store that keeps others has of them cannot be seen. Raises Unavailable."""
    result = Searched()
    wanted = {name.encode() for name in ids if name}
    files = files_of(place)
    try:
        for found in files.get_file_info(fs.FileSelector("", recursive=True, allow_not_found=True)):
            if found.type != fs.FileType.File:
                continue
            with contextlib.suppress(FileNotFoundError):
                if _in_object(files, found.path, wanted):
                    result.hits.add(f"{place}/{found.path}")
                result.files += 1
    except OSError as error:
        raise Unavailable(f"{place} cannot be read: {said_of(error)}") from error
    return result


def _in_object(files: fs.FileSystem, name: str, wanted: set[bytes]) -> bool:
    if name.endswith(".parquet"):
        with contextlib.suppress(pa.ArrowException):
            return _in_table(pq.ParquetFile(name, filesystem=files), wanted)
    with files.open_input_file(name) as content:
        return _in_bytes(content.read(), wanted)


def _files(folder: Path, skipped: Collection[Path]) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.is_symlink() and not any(file.is_relative_to(one) for one in skipped):
            yield file


def _in_file(file: Path, wanted: set[bytes]) -> bool:
    if not file.stat().st_size:
        return False
    with file.open("rb") as content, mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as held:
        return _in_bytes(held, wanted)


def _in_bytes(held: mmap.mmap | bytes, wanted: set[bytes]) -> bool:
    """Response ids, of which there may be many, are found all at once by their form."""
    others = [name for name in wanted if not _RESPONSE_ID.fullmatch(name)]
    if any(held.find(name) >= 0 for name in others):
        return True
    return len(others) < len(wanted) and any(match[0] in wanted for match in _RESPONSE_ID.finditer(held))


def _in_parquet(file: Path, wanted: set[bytes]) -> bool:
    try:
        return _in_table(pq.ParquetFile(file), wanted)
    except pa.ArrowException:
        return _in_file(file, wanted)


def _in_table(file: pq.ParquetFile, wanted: set[bytes]) -> bool:
    with file as parquet:
        return any(
            not wanted.isdisjoint(_texts(column))
            for batch in parquet.iter_batches(batch_size=10_000)
            for column in batch.columns
        )


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
