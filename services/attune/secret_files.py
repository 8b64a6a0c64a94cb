"""Files that only their owner may read, written durably and in one step."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from attune.files import sync


def create(file: Path, data: bytes) -> None:
    """Writes the file unless it is there: of several makers the first wins."""
    with _draft(file, data) as draft, contextlib.suppress(FileExistsError):
        os.link(draft, file)


def replace(file: Path, data: bytes) -> None:
    """Writes the file, whatever it held. Writers that begin with what it holds take turns in `writing`."""
    with _draft(file, data) as draft:
        draft.rename(file)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """One writer at a time in a folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _draft(file: Path, data: bytes) -> Iterator[Path]:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            with os.fdopen(descriptor, "wb") as stream:  # all of it: os.write stops where the disk is full
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file)) from None
        yield draft
    finally:
        draft.unlink(missing_ok=True)
    sync(file.parent)
