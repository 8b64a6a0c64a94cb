"""How much an event log may hold: bytes of records, and bytes promised to records that are still to come."""

import threading
from types import TracebackType
from typing import Self

from attune.errors import ResourceExhausted
from attune.eventlog.log import FEEDBACK

RECORD_OVERHEAD_BYTES = 96
"""What a record costs beside its key and payload."""

_RETRY_AFTER_SECONDS = 1.0


def record_bytes(key: bytes, payload: bytes) -> int:
    return len(key) + len(payload) + RECORD_OVERHEAD_BYTES


class SpaceReservation:
    """Bytes of a Space that are promised to one record."""

    def __init__(self, space: "Space", nbytes: int, topic: str) -> None:
        self.nbytes = nbytes
        self.topic = topic
        self._space = space

    def release(self) -> None:
        self._space.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Space:
    """Keeps held plus promised bytes at or below the bound. Thread-safe; does no I/O.

    Topics other than feedback may fill only `1 - feedback_share` of it, so that a vote still fits when chat is refused.
    """

    def __init__(self, max_bytes: int, feedback_share: float) -> None:
        self._max_bytes = max_bytes
        self._others_bytes = int(max_bytes * (1 - feedback_share))
        self._held_bytes = 0
        self._promised_bytes = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        return self._held_bytes + self._promised_bytes

    @property
    def promised_bytes(self) -> int:
        return self._promised_bytes

    def reserve(self, nbytes: int, topic: str) -> SpaceReservation:
        """Raises ResourceExhausted when the bound would be passed."""
        with self._lock:
            self._take(nbytes, topic)
        return SpaceReservation(self, nbytes, topic)

    def grow(self, reservation: SpaceReservation, nbytes: int) -> None:
        """Makes the reservation at least this large; raises ResourceExhausted, and changes nothing, if it cannot be."""
        with self._lock:
            if nbytes > reservation.nbytes:
                self._take(nbytes - reservation.nbytes, reservation.topic)
                reservation.nbytes = nbytes

    def release(self, reservation: SpaceReservation) -> None:
        with self._lock:
            self._promised_bytes -= reservation.nbytes
            reservation.nbytes = 0

    def settle(self, reservation: SpaceReservation, nbytes: int) -> None:
        """The promise was used: the record's bytes are held now, and what is left of the promise is free."""
        with self._lock:
            self._promised_bytes -= reservation.nbytes
            reservation.nbytes = 0
            self._held_bytes += nbytes

    def hold(self, nbytes: int) -> None:
        """Counts records that were there before (negative: that were trimmed)."""
        with self._lock:
            self._held_bytes += nbytes

    def _take(self, nbytes: int, topic: str) -> None:
        limit = self._max_bytes if topic == FEEDBACK else self._others_bytes
        if self._held_bytes + self._promised_bytes + nbytes > limit:
            raise ResourceExhausted(
                f"the event log is full: {self._held_bytes} bytes held and {self._promised_bytes} reserved, "
                f"{nbytes} more would pass {limit}",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        self._promised_bytes += nbytes
