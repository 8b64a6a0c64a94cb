"""The interface of the event log: an append-only sequence of records for each topic and partition.

Offsets are dense and never used again, not even after everything was trimmed. One process appends; any number of
others read, each at its own pace and under its own name.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

RESPONSES = "attune.responses"
FEEDBACK = "attune.feedback"
TOPICS = (RESPONSES, FEEDBACK)


@dataclass(frozen=True)
class Record:
    """One event, and where it stands. Of one that was erased, key and payload are empty."""

    topic: str
    partition: int
    offset: int
    key: bytes
    payload: bytes


@dataclass(frozen=True)
class Range:
    """The offsets that are held: from `first` to just before `next`; equal when nothing is held."""

    first: int
    next: int


@dataclass(frozen=True)
class Depth:
    """What the slowest configured reader of a topic has not read yet."""

    records: int
    oldest_age_seconds: float


class Reservation(Protocol):
    """Space set aside for one append; given back when that append is durable, or by `release`."""

    def release(self) -> None:
        """Gives the space back; does nothing the second time, or after it was used."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class EventReader(Protocol):
    """What the reading side needs."""

    def log_id(self, topic: str) -> str:
        """Made with the log: offsets of one log say nothing about another.

        It changes when the log is made anew under the reader, at the latest with the first `read` that returns records
        of the new one: who reads compares it before and after.
        """

    def ranges(self, topic: str) -> Mapping[int, Range]:
        """What each partition holds that is this reader's to read now; to be asked for before each round.

        Partitions come and go between calls, where several share them.
        """

    def ends(self, topic: str) -> Mapping[int, int]:
        """The offset that comes next in each partition, asked anew, whoever reads them."""

    def range(self, topic: str, partition: int) -> Range:
        """What one partition holds, asked anew, whoever reads it."""

    def read(self, topic: str, partition: int, offset: int, limit_records: int, limit_bytes: int) -> list[Record]:
        """Records from the offset on, in order, in a short transaction.

        At least one, if there is one, however large. Where records before were trimmed it begins at the first that is
        held: a reader compares the offset it asked for with the one it got.
        """

    def commit(self, reader: str, positions: Mapping[tuple[str, int], int]) -> None:
        """Notes durably that the reader needs nothing before these offsets; they may be trimmed from then on."""

    def positions(self, reader: str) -> dict[tuple[str, int], int]:
        """What the reader committed last; empty when it never did."""

    def close(self) -> None: ...


class EventLog(EventReader, Protocol):
    """What the appending side needs."""

    def reserve(self, nbytes: int, topic: str) -> Reservation:
        """Sets space aside; raises ResourceExhausted (with when to try again) when there is none, Unavailable when
        the store cannot be written."""

    def append(self, topic: str, key: bytes, payload: bytes, reservation: Reservation | None = None) -> "Future[int]":
        """The record's offset, once it is durable; never earlier.

        Without a reservation, space is reserved here and now (and may be refused). The future fails with Unavailable
        when the record could not be written; a reservation then still holds, for another try. A future that is
        cancelled before the writer took it up is not written.
        """

    def depth(self) -> dict[str, Depth]: ...
