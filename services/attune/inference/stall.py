"""Callers that are there and read nothing."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from attune.errors import Unavailable

# How long one message may wait for a caller that does not read.
STALL_SECONDS = 30.0


@dataclass(eq=False)
class Guard:
    """Told by whoever writes: whether a message is on its way now, and how many were taken."""

    writing: bool = False
    written: int = 0


@contextlib.contextmanager
def stall_guard(stall_seconds: float) -> Iterator[Guard]:
    """Ends the running task with Unavailable when one message waits longer: the caller is there and reads nothing."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    guard = Guard()
    stalled = False
    timer: asyncio.TimerHandle

    def look(written: int, writing: bool) -> None:
        nonlocal stalled, timer
        if writing and guard.writing and guard.written == written and task is not None:
            stalled = True
            task.cancel()
        else:
            timer = loop.call_later(stall_seconds, look, guard.written, guard.writing)

    timer = loop.call_later(stall_seconds, look, 0, False)
    try:
        yield guard
    except asyncio.CancelledError:
        if stalled and task is not None:
            task.uncancel()
            raise Unavailable(f"the caller read nothing for {stall_seconds:g} s") from None
        raise
    finally:
        timer.cancel()
