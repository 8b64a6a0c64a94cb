"""Who gets in: a bound on the calls that run, and a door that can be shut."""

import asyncio

from attune.errors import AttuneError, ResourceExhausted


class Admission:
    """Counts running chat calls; refuses at once, never queues. For one event loop."""

    def __init__(self, max_concurrent: int) -> None:
        self._max_concurrent = max_concurrent
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusals: dict[str, AttuneError] = {}

    @property
    def running(self) -> int:
        return self._running

    def enter(self) -> None:
        """Takes a place, to be given back by `leave`. Raises what `shut` was given, or ResourceExhausted when full."""
        for refusal in self._refusals.values():
            raise type(refusal)(refusal.message, retry_after_seconds=refusal.retry_after_seconds)
        if self._running >= self._max_concurrent:
            raise ResourceExhausted(
                f"{self._running} calls are running; this server takes {self._max_concurrent} at once",
                retry_after_seconds=1,
            )
        self._running += 1
        self._idle.clear()

    def leave(self) -> None:
        self._running -= 1
        if self._running == 0:
            self._idle.set()

    def shut(self, why: str, refusal: AttuneError) -> None:
        """From now on `enter` raises this, until opened again for the same `why`; running calls are left alone."""
        self._refusals[why] = refusal

    def open(self, why: str) -> None:
        self._refusals.pop(why, None)

    async def wait_idle(self, timeout_seconds: float) -> bool:
        """Whether all calls ended in time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_seconds)
        except TimeoutError:
            return False
        return True
