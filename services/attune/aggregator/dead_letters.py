"""Records that no row could be made of: set aside with their reason, looked at, and tried again.

They are kept in the lake's table `dead-letter`, with Kafka in the topic `attune.dead-letter`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from attune.aggregator.privacy.guard import Guard
from attune.errors import AlreadyExists, FailedPrecondition, InvalidInput
from attune.eventlog import FEEDBACK, RESPONSES
from attune.eventlog.cluster import Cluster
from attune.eventlog.producer import Message, Producer
from attune.eventlog.topics import DEAD_LETTER, read_whole
from attune.lake import tables
from attune.lake.delta import Conflict, LakeTable
from attune.lake.lake import Lake
from attune.lake.rows import rows_of
from attune.settings import KafkaSettings

Row = dict[str, Any]

_TRIES = 5
# As headers of the topic; the key and the payload are the record's own.
_HEADERS = ("topic", "log_id", "log_partition", "log_offset", "reason", "payload_bytes", "payload_sha256")
_COLUMNS = (*_HEADERS, "key", "payload")


@dataclass(frozen=True)
class DeadLetter:
    """A record, where it stood, and what is wrong with it. Of a payload above 1 MiB only the beginning is kept."""

    topic: str
    log_id: str
    partition: int
    offset: int
    reason: str
    key: bytes
    payload: bytes
    payload_bytes: int
    payload_sha256: str

    @property
    def source(self) -> str:
        """Names the record, whatever log it is of."""
        return f"dead-letter/{self.log_id}/{self.topic}/{self.partition}/{self.offset}"

    @property
    def id(self) -> str:
        """Short enough to type."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:12]


class DeadLetters(Protocol):
    """Where they are kept."""

    def set_aside(self, dead: Sequence[Row], source: str, following: int) -> Sequence[Row]:
        """Keeps them, and returns those that were not kept before; called again for a batch that did not get through.

        `following` is the offset that the source goes on at. Raises Conflict or Unavailable.
        """

    def read(self) -> Iterator[DeadLetter]:
        """Each once; those of one partition in their order."""

    def sync(self) -> None: ...

    def reload(self) -> None: ...


class DeadLetterTable:
    """In the lake. The table keeps an offset of its own for each source: each record is in it once."""

    def __init__(self, table: LakeTable) -> None:
        self._table = table

    def set_aside(self, dead: Sequence[Row], source: str, following: int) -> Sequence[Row]:
        written = self._table.next_offset(source)
        fresh = [row for row in dead if row["log_offset"] >= written]
        if fresh:
            rows = tables.to_arrow(tables.DEAD_LETTER, fresh)
            self._table.append(rows, source, written, max(written, following))
        return fresh

    def read(self) -> Iterator[DeadLetter]:
        places = ("topic", "log_id", "log_partition", "log_offset")
        rows = self._table.read(list(_COLUMNS)).sort_by([(column, "ascending") for column in places])
        for row in rows.to_pylist():
            yield _letter(row)

    def sync(self) -> None:
        self._table.sync()

    def reload(self) -> None:
        self._table.reload()


class DeadLetterTopic:
    """In Kafka. A record may be in the topic twice, where an aggregator ended before it noted that it was there."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._producer = Producer(cluster)

    def set_aside(self, dead: Sequence[Row], source: str, following: int) -> Sequence[Row]:
        topic = self._cluster.topic(DEAD_LETTER)
        for outcome in self._producer.send([_message(topic, row) for row in dead]):
            if outcome is not None:
                raise outcome
        return dead

    def read(self) -> Iterator[DeadLetter]:
        seen: set[str] = set()
        for record in read_whole(self._cluster, DEAD_LETTER):
            row: Row = {name: record.headers.get(name, b"").decode(errors="replace") for name in _HEADERS}
            try:
                numbers = {name: int(row[name]) for name in ("log_partition", "log_offset", "payload_bytes")}
            except ValueError:  # not written by us
                continue
            letter = _letter(row | numbers | {"key": record.key, "payload": record.payload})
            if letter.source not in seen:
                seen.add(letter.source)
                yield letter

    def sync(self) -> None:
        """What was set aside was durable at once."""

    def reload(self) -> None:
        """There is nothing that could be old."""


def dead_letters_of(settings: KafkaSettings, lake: Lake) -> DeadLetters:
    """Where new ones go."""
    return DeadLetterTopic(Cluster.of(settings)) if settings.servers else DeadLetterTable(lake.dead_letter)


def is_replayed(letter: DeadLetter, lake: Lake) -> bool:
    return letter.topic in (RESPONSES, FEEDBACK) and bool(_table_of(letter, lake).next_offset(letter.source))


class Outcome(StrEnum):
    """What came of a replay."""

    BROUGHT = "is in the lake"
    KNOWN = "was in the lake already, as an event"
    DROPPED = "stays out of the lake: it is of somebody who was erased"


def replay(letter: DeadLetter, lake: Lake, guard: Guard | None) -> Outcome:
    """Tries again to make a row of it.

    The record goes into its table as if the log had brought it: once, however often it is replayed. Raises
    AlreadyExists when it was replayed before, InvalidInput with the reason when it is still no event that this version
    knows, FailedPrecondition when not all of it was kept.
    """
    table = _table_of(letter, lake)
    if letter.payload_bytes != len(letter.payload):
        raise FailedPrecondition(f"only {len(letter.payload)} of {letter.payload_bytes} bytes were kept")
    name = {RESPONSES: tables.RESPONSES, FEEDBACK: tables.FEEDBACK}[letter.topic]
    made = rows_of(name, [letter.payload], letter.log_id, letter.partition, [letter.offset])
    if made.poison:
        raise InvalidInput(f"still no event: {made.poison[0]}")
    kept = guard.rows(name, made.table) if guard else made.table
    for attempt in range(_TRIES):
        if table.next_offset(letter.source):
            raise AlreadyExists("it was replayed before")
        known = table.find("event_id", made.table["event_id"].to_pylist(), ["event_id"]).num_rows
        try:
            table.append(kept.slice(0, 0) if known else kept, letter.source, 0, 1)
            break
        except Conflict:
            if attempt == _TRIES - 1:
                raise
            table.reload()
    table.sync()
    if known:
        return Outcome.KNOWN
    return Outcome.BROUGHT if kept.num_rows else Outcome.DROPPED


def _table_of(letter: DeadLetter, lake: Lake) -> LakeTable:
    if letter.topic not in (RESPONSES, FEEDBACK):
        raise FailedPrecondition(f"it is of {letter.topic}, which no table is made of")
    return lake.responses if letter.topic == RESPONSES else lake.feedback


def _message(topic: str, row: Row) -> Message:
    headers = tuple((name, str(row[name]).encode()) for name in _HEADERS)
    return Message(topic, row["key"], row["payload"], headers)


def _letter(row: Row) -> DeadLetter:
    return DeadLetter(
        topic=row["topic"],
        log_id=row["log_id"],
        partition=row["log_partition"],
        offset=row["log_offset"],
        reason=row["reason"],
        key=row["key"],
        payload=row["payload"],
        payload_bytes=row["payload_bytes"],
        payload_sha256=row["payload_sha256"],
    )
