"""Long works that RPCs ask for: a few at once, in threads, each to its end even when its caller goes away."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from attune.errors import ResourceExhausted

T = TypeVar("T")


class Turns:
    """At most so many works at once; one more is refused."""

    def __init__(self, what: str, most: int) -> None:
        self._refusal = f"{most} {what} at once are running; no more"
        self._free = threading.BoundedSemaphore(most)

    async def take(self, work: Callable[[], T]) -> T:
        """What the work gives. Raises ResourceExhausted, with when to try again, and what the work raises."""
        if not self._free.acquire(blocking=False):
            raise ResourceExhausted(self._refusal, retry_after_seconds=10)
        # A thread cannot be cancelled: its place is taken until it ends.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self._to_its_end, work))

    async def follow(self, work: Callable[[Callable[[T], None]], None]) -> AsyncIterator[T]:
        """What the work tells while it runs; then raises what it raised."""
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[T | None] = asyncio.Queue()

        def tell(news: T) -> None:
            loop.call_soon_threadsafe(told.put_nowait, news)

        def ended(job: "asyncio.Task[None]") -> None:
            if not job.cancelled():
                job.exception()  # nobody may be left to ask for it
            told.put_nowait(None)

        job = asyncio.create_task(self.take(lambda: work(tell)))
        job.add_done_callback(ended)
        while (news := await told.get()) is not None:
            yield news
        await job

    def _to_its_end(self, work: Callable[[], T]) -> T:
        try:
            return work()
        finally:
            self._free.release()
