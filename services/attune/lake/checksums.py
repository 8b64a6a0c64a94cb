"""Checksums of a local table's files.

    <table>/_checksums/<file>.sha256    written when the file's commit is made durable

Neither Parquet as deltalake writes it nor Delta's log has any: a flipped bit would be read as data. An object store
checks what it keeps itself, so there are none of its files. Delta leaves names that begin with _ alone.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

_FOLDER = "_checksums"
_SUFFIX = ".sha256"
_WHOLE = re.compile(r"[0-9a-f]{64}\n")


def note_checksums(folder: Path, files: Iterable[str]) -> None:
    """Of these files, named relative to the table, those that have none yet.

    Raises FileNotFoundError for a file that is not there.
    """
    for name in files:
        note = _note_of(folder, name)
        if note.exists():
            continue
        draft = note.with_name(f".{secrets.token_hex(4)}")
        note.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(f"{sha256_of(folder / name)}\n")
        draft.replace(note)


def read_checksum(folder: Path, name: str) -> str | None:
    """None when none was noted, or a power cut took it."""
    try:
        noted = _note_of(folder, name).read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return noted.strip() if _WHOLE.fullmatch(noted) else None


def fault_of(folder: Path, name: str, size: int) -> str:
    """Empty for a file that is as it was written, or of which no checksum was noted and the size is right."""
    try:
        found = (folder / name).stat().st_size
        if found != size:
            return f"{found} bytes of {size}"
        noted = read_checksum(folder, name)
        return "" if noted is None or noted == sha256_of(folder / name) else "its SHA-256 is another"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def forget_checksums(folder: Path) -> None:
    """Of files that are no longer there."""
    for note in list(_notes(folder / _FOLDER)):
        name = note.relative_to(folder / _FOLDER)
        if not (folder / name).with_suffix("").exists():
            note.unlink(missing_ok=True)


def sha256_of(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _note_of(folder: Path, name: str) -> Path:
    return folder / _FOLDER / f"{name}{_SUFFIX}"


def _notes(folder: Path) -> Iterator[Path]:
    for root, _, files in os.walk(folder):
        for file in files:
            if file.endswith(_SUFFIX):
                yield Path(root, file)
