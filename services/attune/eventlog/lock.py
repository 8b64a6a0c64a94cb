"""The lock of the one process that appends."""

import fcntl
import os
import weakref
from pathlib import Path

from attune.errors import FailedPrecondition


class WriterLock:
    """Held by the process that appends. A forked child lets go of its copy, so that it cannot outlive its parent's."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise FailedPrecondition(f"another process writes the event log in {folder}; only one may") from None
        _held.add(self)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


_held: "weakref.WeakSet[WriterLock]" = weakref.WeakSet()


def _release_copies() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_copies)
