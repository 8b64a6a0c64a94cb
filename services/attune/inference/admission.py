"""Who gets in: bounds on the calls and tokens that run, shared fairly between tenants, and a door that can be shut."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from attune.errors import AttuneError, ResourceExhausted

# A tenant that was turned away keeps its claim to a share for so long.
_CLAIM_SECONDS = 5.0


class Ticket:
    """A place for one call; given back once."""

    def __init__(self, admission: "Admission", tenant: str, tokens: int) -> None:
        self._admission = admission
        self._tenant = tenant
        self._tokens = tokens
        self._held = True

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._admission._leave(self._tenant, self._tokens)


class Admission:
    """Counts running calls and the tokens that they may take; refuses at once, never queues. For one event loop.

    A tenant alone may have everything. As soon as others ask too, nobody gets more than an equal part of the places
    anew; what runs is left alone, so the parts even out within the length of an answer.
    """

    def __init__(self, max_concurrent: int, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_concurrent = max_concurrent
        self._max_tokens = max_tokens
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._tokens = 0
        self._turned_away: dict[str, float] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusals: dict[str, AttuneError] = {}

    @property
    def running(self) -> int:
        return self._running.total()

    @property
    def refusal(self) -> AttuneError | None:
        """What everybody is refused with at the moment, if the door is shut."""
        return next(iter(self._refusals.values()), None)

    def check(self, tenant: str) -> None:
        """Raises what `enter` would raise for a call of no tokens: before any work is done for it."""
        for refusal in self._refusals.values():
            raise type(refusal)(refusal.message, retry_after_seconds=refusal.retry_after_seconds)
        running = self._running.total()
        if running >= self._max_concurrent:
            self._refuse(tenant, f"{running} calls are running; this server takes {self._max_concurrent} at once")
        part = self._max_concurrent // len(self._claiming(tenant))
        if self._running[tenant] >= max(1, part):
            self._refuse(tenant, f"{self._running[tenant]} of your calls are running; your part is {part} at once now")

    def enter(self, tenant: str, tokens: int) -> Ticket:
        """A place for a call that may read and write this many tokens.

        Raises what `shut` was given, or ResourceExhausted when there is no room.
        """
        self.check(tenant)
        if self._tokens and self._tokens + tokens > self._max_tokens:
            self._refuse(
                tenant, f"running calls may take {self._tokens} tokens; this server takes {self._max_tokens} at once"
            )
        self._turned_away.pop(tenant, None)
        self._running[tenant] += 1
        self._tokens += tokens
        self._idle.clear()
        return Ticket(self, tenant, tokens)

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

    def _leave(self, tenant: str, tokens: int) -> None:
        self._tokens -= tokens
        self._running[tenant] -= 1
        if self._running[tenant] == 0:
            del self._running[tenant]
        if not self._running:
            self._idle.set()

    def _claiming(self, tenant: str) -> set[str]:
        """Tenants with running calls, the one that asks, and those that were turned away lately."""
        since = self._clock() - _CLAIM_SECONDS
        self._turned_away = {name: at for name, at in self._turned_away.items() if at > since}
        return {tenant, *self._running, *self._turned_away}

    def _refuse(self, tenant: str, sentence: str) -> None:
        self._turned_away[tenant] = self._clock()
        raise ResourceExhausted(sentence, retry_after_seconds=1)
