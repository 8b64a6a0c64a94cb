"""When a call that failed is made again, and after what pause.

Not by gRPC's own retry policy (service config): it knows nothing of google.rpc.RetryInfo, only of a trailer of its own;
it spreads its pauses by a fifth where clients that were refused together had better spread over all of it; it makes at
most five attempts, gives up without a word on requests larger than its buffer (256 KiB), and cannot tell a failure from
"the same request still runs". What gRPC does by itself stays: a call that never left this process is sent again.
"""

import random
import time
from dataclasses import dataclass

from attune.errors import Aborted, AttuneError, InvalidInput, ResourceExhausted, Unavailable

# Told to come back after the same time, all come back at the same time: up to so much later.
_SPREAD = 0.25


@dataclass(frozen=True)
class Retry:
    """How patient a client is. Only what does the same when it is done twice is ever repeated.

    UNAVAILABLE, and RESOURCE_EXHAUSTED where the server says when to come back, are tried again: after the time that
    the server tells, never before it; else after a random part of a pause that doubles (full jitter). Who is told to
    wait longer than `longest_pause_seconds`, or than the deadline leaves, is given the error at once. While the first
    request with the same id still runs (ABORTED) the client asks again until the deadline, which is not counted.
    """

    attempts: int = 5
    first_pause_seconds: float = 0.2
    longest_pause_seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidInput(f"attempts is {self.attempts}; it must be at least 1, which repeats nothing")
        if not 0 < self.first_pause_seconds <= self.longest_pause_seconds:
            raise InvalidInput(
                f"first_pause_seconds is {self.first_pause_seconds:g}; it must be above 0 and at most "
                f"longest_pause_seconds, {self.longest_pause_seconds:g}"
            )

    def pause_seconds(self, error: AttuneError, failures: int, drawn: float) -> float | None:
        """The pause after so many failures in a row; None: not again. `drawn` is a random number from 0 to 1."""
        told = error.retry_after_seconds
        if isinstance(error, Aborted):
            return (1.0 if told is None else told) * (1 + _SPREAD * drawn) if self.attempts > 1 else None
        again = isinstance(error, Unavailable) or (isinstance(error, ResourceExhausted) and told is not None)
        if not again or failures >= self.attempts:
            return None
        if told is None:
            return drawn * min(self.longest_pause_seconds, self.first_pause_seconds * 2.0 ** (failures - 1))
        return None if told > self.longest_pause_seconds else told * (1 + _SPREAD * drawn)


PATIENT = Retry()


class Patience:
    """One call with all its attempts, until its deadline."""

    def __init__(self, retry: Retry, timeout_seconds: float) -> None:
        self._retry = retry
        self._deadline = time.monotonic() + timeout_seconds
        self._failures = 0

    def remaining_seconds(self) -> float:
        """For the next attempt."""
        return max(0.0, self._deadline - time.monotonic())

    def pause_after(self, error: AttuneError) -> float:
        """How long to wait before the next attempt; raises the error when there is to be none."""
        if not isinstance(error, Aborted):
            self._failures += 1
        pause = self._retry.pause_seconds(error, self._failures, random.random())
        if pause is None or pause >= self.remaining_seconds():
            raise error from None
        return pause
