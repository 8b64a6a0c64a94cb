"""Waiting for something to become true while the event loop runs, with a deadline."""

import asyncio
import time
from collections.abc import Callable


async def eventually(holds: Callable[[], object], seconds: float = 10) -> None:
    """Returns once it holds; fails when it does not before the deadline."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not become true in time"
        await asyncio.sleep(0.01)
