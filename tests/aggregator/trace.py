"""A search for a person's words that decodes every store, written apart from the one that attune looks with."""

import json
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from deltalake.fs import DeltaStorageHandler
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]
from pyarrow import fs

from attune.lake.place import ObjectStore


def traces(folder: Path, words: Sequence[str], token_ids: Sequence[int]) -> dict[str, set[str]]:
    """By store (the first part of a file's path) the files in which one of the words or the token ids stand."""
    packed = b"".join(_VarintBytes(one) for one in token_ids)
    needles = [word.encode() for word in words] + [packed, json.dumps(list(token_ids))[1:-1].encode()]
    needles.append(json.dumps(list(token_ids), separators=(",", ":"))[1:-1].encode())
    found: dict[str, set[str]] = {}
    for file in folder.rglob("*"):
        if file.is_file() and any(needle in content for content in _contents(file) for needle in needles):
            store = file.relative_to(folder).parts[0]
            found.setdefault(store, set()).add(file.name)
    return found


def traces_in_store(place: ObjectStore, words: Sequence[str], token_ids: Sequence[int]) -> dict[str, set[str]]:
    """The same of an object store's objects."""
    held = fs.PyFileSystem(DeltaStorageHandler(place.url, options=dict(place.options)))
    with tempfile.TemporaryDirectory() as folder:
        for found in held.get_file_info(fs.FileSelector("", recursive=True)):
            if found.type == fs.FileType.File:
                copy = Path(folder, found.path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(held.open_input_file(found.path).read())
        return traces(Path(folder), words, token_ids)


def _contents(file: Path) -> Iterator[bytes]:
    """As it lies on the disk, with its free pages and WAL; and decoded."""
    yield file.read_bytes()
    if file.suffix == ".parquet":
        for row in pq.read_table(file).to_pylist():
            yield _spelled(row)
    if file.suffix == ".sqlite":
        with sqlite3.connect(file) as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for name in names:
                for row in connection.execute(f"SELECT * FROM {name}"):
                    yield b"\0".join(value if isinstance(value, bytes) else str(value).encode() for value in row)


def _spelled(value: Any) -> bytes:
    return json.dumps(value, default=lambda one: one.decode("latin-1") if isinstance(one, bytes) else str(one)).encode()
