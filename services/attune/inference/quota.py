"""What each API key may use: requests and tokens over time, on this replica."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from attune.access import UNLIMITED, Caller
from attune.errors import ResourceExhausted

_MINUTE, _DAY = 60.0, 86_400.0
_MOST_KEYS = 10_000
# Who comes back when told to is not sent away again for a rounding.
_SLACK_SECONDS = 0.001


@dataclass
class Bucket:
    """A token bucket: holds up to `capacity`, fills up within `seconds`. May be overdrawn by what was not foreseen."""

    capacity: float
    seconds: float
    level: float
    filled_at: float

    def fill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + (now - self.filled_at) * self.capacity / self.seconds)
        self.filled_at = now

    def wait_seconds(self, amount: float) -> float:
        """How long until this much is there; 0 when it is. More than ever fits in is let through when it is full."""
        return max(0.0, (min(amount, self.capacity) - self.level) * self.seconds / self.capacity)


@dataclass
class _Use:
    requests: Bucket | None
    tokens: tuple[tuple[str, Bucket], ...]
    running: int = 0


class Charge:
    """What one call was charged; settled once."""

    def __init__(self, use: _Use | None, tokens: int) -> None:
        self._use = use
        self._tokens = tokens

    def settle(self, tokens: int) -> None:
        """The call has ended and used this many tokens: the difference is given back."""
        if self._use is None:
            return
        for _, bucket in self._use.tokens:
            bucket.level = min(bucket.capacity, bucket.level + self._tokens - tokens)
        self._use.running -= 1
        self._use = None


class Quotas:
    """Keeps account by key. For one event loop; forgets at a restart."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: OrderedDict[str, _Use] = OrderedDict()

    def check(self, caller: Caller) -> None:
        """Raises what `charge` would raise whatever the tokens: before any work is done for the call."""
        if caller.limits == UNLIMITED:
            return
        now = self._clock()
        use = self._use(caller, now)
        _check_concurrency(use, caller)
        if use.requests is not None:
            _check_bucket("requests_per_minute", use.requests, 1, now)

    def charge(self, caller: Caller, tokens: int) -> Charge:
        """Takes one request and the most tokens that it may use; raises ResourceExhausted with when to try again.

        A refusal takes nothing. A call that wants more than its bucket can ever hold gets in when that is full, and
        leaves it overdrawn.
        """
        if caller.limits == UNLIMITED:
            return Charge(None, 0)
        now = self._clock()
        use = self._use(caller, now)
        _check_concurrency(use, caller)
        wanted = [(name, bucket, tokens) for name, bucket in use.tokens]
        if use.requests is not None:
            wanted.append(("requests_per_minute", use.requests, 1))
        for name, bucket, amount in wanted:
            _check_bucket(name, bucket, amount, now)
        for _, bucket, amount in wanted:
            bucket.level -= amount
        use.running += 1
        return Charge(use, tokens)

    def _use(self, caller: Caller, now: float) -> _Use:
        use = self._uses.get(caller.key_id)
        if use is None:
            limits = caller.limits
            per = (
                ("tokens_per_minute", limits.tokens_per_minute, _MINUTE),
                ("tokens_per_day", limits.tokens_per_day, _DAY),
            )
            use = _Use(
                requests=_full(limits.requests_per_minute, _MINUTE, now),
                tokens=tuple((name, bucket) for name, most, over in per if (bucket := _full(most, over, now))),
            )
            self._uses[caller.key_id] = use
            if len(self._uses) > _MOST_KEYS:
                self._uses.popitem(last=False)
        # The key that was used longest ago is forgotten first: its buckets are the likeliest to be full again.
        self._uses.move_to_end(caller.key_id)
        return use


def _check_concurrency(use: _Use, caller: Caller) -> None:
    most = caller.limits.concurrent_requests
    if most is not None and use.running >= most:
        raise ResourceExhausted(
            f"{use.running} calls with this key are running; it may have {most} at once",
            field="concurrent_requests",
            retry_after_seconds=1,
        )


def _check_bucket(name: str, bucket: Bucket, amount: float, now: float) -> None:
    bucket.fill(now)
    wait_seconds = bucket.wait_seconds(amount)
    if wait_seconds > _SLACK_SECONDS:
        raise ResourceExhausted(
            f"this key's {name} of {bucket.capacity:.0f} is used up", field=name, retry_after_seconds=wait_seconds
        )


def _full(capacity: int | None, seconds: float, now: float) -> Bucket | None:
    return None if capacity is None else Bucket(capacity, seconds, capacity, now)
