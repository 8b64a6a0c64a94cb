"""Small files that are written once, whole or not at all, and read with suspicion.

What the disk refuses (no space, no rights, no descriptors) is raised as Unavailable, for it may pass; but whether a
file is there is for the caller to know, so FileNotFoundError and FileExistsError stay what they are.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from attune.errors import DataLoss, Unavailable

DRAFT_PREFIX = ".draft-"


@contextlib.contextmanager
def reported(file: Path) -> Iterator[None]:
    """Raises Unavailable for what the disk refuses."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        raise Unavailable(f"{_name(file)}: {error.strerror or error}", retry_after_seconds=1) from error


def create_file(file: Path, content: bytes) -> None:
    """Creates the file with this content, durably; raises FileExistsError if it is there already.

    Whoever sees the name sees all of the content: it is written under a draft's name and then linked. A crash in
    between leaves a draft, which no reader looks at.
    """
    draft = file.with_name(f"{DRAFT_PREFIX}{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with reported(file):
        try:
            with draft.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.link(draft, file)
        finally:
            draft.unlink(missing_ok=True)
        sync(file.parent)


def sync(path: Path) -> None:
    """Makes a file's bytes, or a folder's names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Everything under the folder, and the folder's own name."""
    for root, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # another process tidied it away
                sync(Path(root, file))
        sync(Path(root))
    sync(folder.parent)


def make_folder(folder: Path) -> None:
    """Makes the folder and what is missing above it, durably."""
    with reported(folder):
        missing = [part for part in (folder, *folder.parents) if not part.exists()]
        for part in reversed(missing):
            part.mkdir(exist_ok=True)
            sync(part.parent)


def names_in(folder: Path) -> list[str]:
    """The folder's names, in order; none where there is no folder."""
    with reported(folder):
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []


@contextlib.contextmanager
def open_regular(file: Path) -> Iterator[int]:
    """A descriptor to read the file by; raises FileNotFoundError, or DataLoss for a link, a pipe or a folder."""
    with reported(file):
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                raise DataLoss(f"{_name(file)} is no plain file") from None
            raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataLoss(f"{_name(file)} is no plain file")
        yield descriptor
    finally:
        os.close(descriptor)


def read_file(file: Path, max_bytes: int) -> bytes:
    """The file's content; raises FileNotFoundError, or DataLoss if it is no plain file or longer than the limit."""
    with open_regular(file) as descriptor, reported(file), os.fdopen(descriptor, "rb", closefd=False) as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DataLoss(f"{_name(file)} is longer than {max_bytes} bytes")
    return content


def _name(file: Path) -> str:
    """The file's name with its folder's: enough to find it, and not the machine's whole path."""
    return f"{file.parent.name}/{file.name}"
