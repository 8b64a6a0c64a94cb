"""Who gets in: bounds on the answers and tokens that run, fair between tenants, and a door that can be shut."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from attune.errors import AttuneError, ResourceExhausted

# A tenant that was turned away keeps its claim to a share for so long.
_CLAIM_SECONDS = 5.0
_RETRY_AFTER_SECONDS = 1.0


class Ticket:
    """Room for one call; given back once."""

    def __init__(self, admission: "Admission", tenant: str, answers: int, tokens: int) -> None:
        self._admission = admission
        self._tenant = tenant
        self._answers = answers
        self._tokens = tokens
        self._held = True

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._admission._leave(self._tenant, self._answers, self._tokens)


class Admission:
    """Counts running answers and the tokens that they may take; refuses at once, never queues. For one event loop.

    A tenant alone may have everything. As soon as others ask too, nobody gets more than an equal part of the answers
    and of the tokens anew; what runs is left alone, so the parts even out within the length of an answer. Whoever has
    nothing running gets one call in wherever there is room, were it larger than a part.
    """

    def __init__(self, max_concurrent: int, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_concurrent = max_concurrent
        self._max_tokens = max_tokens
        self._clock = clock
        self._answers: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._turned_away: dict[str, float] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusals: dict[str, AttuneError] = {}

    @property
    def running(self) -> int:
        """Answers that are generated now."""
        return self._answers.total()

    @property
    def refusal(self) -> AttuneError | None:
        """What everybody is refused with at the moment, if the door is shut."""
        return next(iter(self._refusals.values()), None)

    def check(self, tenant: str) -> None:
        """Raises what `enter` would raise for the smallest call: before any work is done for it."""
        self._check(tenant, 1, 0)

    def enter(self, tenant: str, tokens: int, answers: int = 1) -> Ticket:
        """Room for a call that generates so many answers and may read and write so many tokens in all.

        Raises what `shut` was given, or ResourceExhausted when there is no room.
        """
        self._check(tenant, answers, tokens)
        self._turned_away.pop(tenant, None)
        self._answers[tenant] += answers
        self._tokens[tenant] += tokens
        self._idle.clear()
        return Ticket(self, tenant, answers, tokens)

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

    def _check(self, tenant: str, answers: int, tokens: int) -> None:
        for refusal in self._refusals.values():
            raise type(refusal)(refusal.message, retry_after_seconds=refusal.retry_after_seconds)
        self._check_room(tenant, "answers", self._answers, answers, self._max_concurrent)
        self._check_room(tenant, "tokens", self._tokens, tokens, self._max_tokens)

    def _check_room(self, tenant: str, what: str, held: Counter[str], wanted: int, most: int) -> None:
        """Refuses what goes beyond the whole, or beyond the tenant's part of it."""
        everybody = held.total()
        if everybody and everybody + wanted > most:
            self._refuse(
                tenant,
                f"{everybody} {what} are running and {wanted} more are asked for; this server takes {most} at once",
            )
        part = most // len(self._claiming(tenant))
        if held[tenant] and held[tenant] + wanted > part:
            self._refuse(
                tenant,
                f"{held[tenant]} {what} of yours are running and {wanted} more are asked for; "
                f"your part is {part} at once now",
            )

    def _claiming(self, tenant: str) -> set[str]:
        """Tenants with running calls, the one that asks, and those that were turned away lately."""
        since = self._clock() - _CLAIM_SECONDS
        self._turned_away = {name: at for name, at in self._turned_away.items() if at > since}
        return {tenant, *self._answers, *self._turned_away}

    def _refuse(self, tenant: str, sentence: str) -> None:
        self._turned_away[tenant] = self._clock()
        raise ResourceExhausted(sentence, retry_after_seconds=_RETRY_AFTER_SECONDS)

    def _leave(self, tenant: str, answers: int, tokens: int) -> None:
        self._answers[tenant] -= answers
        self._tokens[tenant] -= tokens
        if self._answers[tenant] == 0:
            del self._answers[tenant], self._tokens[tenant]
        if not self._answers:
            self._idle.set()
