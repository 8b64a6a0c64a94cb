"""From the event log to the lake, each event exactly once."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from attune import metrics
from attune.aggregator.dead_letters import DeadLetters, DeadLetterTable
from attune.aggregator.privacy.guard import Guard
from attune.errors import AttuneError, DataLoss, Unavailable
from attune.eventlog import FEEDBACK, RESPONSES, EventReader, Range, Record
from attune.lake import tables
from attune.lake.delta import Conflict
from attune.lake.lake import Lake
from attune.lake.rows import rows_of
from attune.lake.tables import Position

logger = logging.getLogger(__name__)

READER = "aggregator"

# Outside of these a clock was wrong, or an import says so: before 2000, or more than a day ahead.
_EARLIEST_UNIX_MS = 946_684_800_000
_AHEAD_MS = 86_400_000
_BATCH_BYTES = 16 << 20
_IDS_REMEMBERED = 200_000

Row = dict[str, Any]


class SeenIds:
    """The event ids that a table got lately, the oldest forgotten first."""

    def __init__(self, ids: Iterable[str], limit: int = _IDS_REMEMBERED) -> None:
        self._limit = limit
        self._order: deque[str] = deque()
        self._ids: set[str] = set()
        self.add(ids)

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._ids

    def add(self, ids: Iterable[str]) -> None:
        for event_id in ids:
            if event_id not in self._ids:
                self._ids.add(event_id)
                self._order.append(event_id)
        while len(self._order) > self._limit:
            self._ids.discard(self._order.popleft())


class Ingest:
    """Moves batches of one topic into its table.

    A batch is committed with the offset that follows it, so a crash at any step leaves it in the lake whole or not at
    all, and the next start goes on from what the lake says. Any number may run at once: one of them gets a batch in,
    the others drop theirs and go on behind it. Records that no row can be made of go to the dead letters first.
    """

    def __init__(
        self,
        log: EventReader,
        lake: Lake,
        topic: str,
        *,
        batch_records: int,
        guard: Guard | None = None,
        dead_letters: DeadLetters | None = None,
        reached: Callable[[str], None] = lambda _step: None,
    ) -> None:
        """Dead letters go to the lake's table where nothing else is said.

        `reached` is told each step that is done; crash tests end the process there.
        """
        self._log = log
        self._topic = topic
        self._name, self._table = {
            RESPONSES: (tables.RESPONSES, lake.responses),
            FEEDBACK: (tables.FEEDBACK, lake.feedback),
        }[topic]
        self._dead_letters = dead_letters or DeadLetterTable(lake.dead_letter)
        self._batch_records = batch_records
        self._guard = guard
        self._reached = reached
        self._recall()
        # How far each source was when its ids were last recalled, or where this ingest has brought it since.
        self._known: dict[str, int] = {}
        self._alarmed: set[str] = set()
        self._failed = -1

    def poll(self) -> int:
        """Ingests at most one batch of each partition; returns how many records the fullest had.

        What is damaged holds up no other partition, and is raised at the end. When the log or the lake does not answer
        the others would wait as long: the next call begins behind that one.
        """
        fullest, lag = 0, 0
        failure: AttuneError | None = None
        ranges = self._log.ranges(self._topic)
        reached: dict[int, int] = {}
        for partition in sorted(ranges, key=lambda each: (each <= self._failed, each)):
            try:
                taken, left = self._ingest(partition, ranges[partition], reached)
            except Conflict as conflict:
                metrics.LAKE_CONFLICTS.labels(self._name).inc()
                logger.info("batch dropped", extra={"topic": self._topic, "reason": conflict.message})
                self._reload()
                taken, left = 1, 0
            except DataLoss as error:
                self._reload()
                failure, taken, left = error, 0, 0
            except Unavailable as error:
                self._failed = partition
                self._reload()
                failure = error
                break
            fullest, lag = max(fullest, taken), lag + left
        self._make_durable(reached)
        if failure is not None:
            raise failure
        metrics.LAKE_LAG.labels(self._topic).set(lag)
        return fullest

    def _ingest(self, partition: int, held: Range, reached: dict[int, int]) -> tuple[int, int]:
        """How many records were taken, and how many are left; and in `reached` where the table stands now."""
        log_id = self._log.log_id(self._topic)
        source = f"{log_id}/{self._topic}/{partition}"
        if not self._in_range(source, partition, held):
            return 0, max(0, held.next - self._table.next_offset(source))
        first = self._next(source)
        waiting = max(0, held.next - first)
        records = self._log.read(self._topic, partition, first, self._batch_records, _BATCH_BYTES) if waiting else []
        if self._log.log_id(self._topic) != log_id:
            raise Conflict(f"{source} is gone; the log was made anew")
        if records and records[0].offset != first:
            raise Conflict(f"{source} was trimmed behind {first} while it was read")
        following = first
        if records:
            following = records[-1].offset + 1
            rows, dead = self._convert(records, log_id)
            self._reached("converted")
            self._set_aside(dead, source, following)
            self._reached("dead letters written")
            self._table.append(rows, source, first, following)
            self._reached("committed")
            self._known[source] = following
            self._seen.add(rows["event_id"].to_pylist())
            metrics.LAKE_ROWS.labels(self._name).inc(rows.num_rows)
            metrics.LAKE_STRANGE_TIMES.labels(self._name).inc(_count_strange_times(rows))
        reached[partition] = following
        return len(records), max(0, waiting - len(records))

    def _next(self, source: str) -> int:
        """The offset to go on at. Where another aggregator brought the source there, its ids are recalled: a record of
        them may come again, and a commit to one source shows this handle what others committed to the rest."""
        if self._known.get(source) != self._table.next_offset(source):
            self._reload()
            self._known[source] = self._table.next_offset(source)
        return self._known[source]

    def _in_range(self, source: str, partition: int, held: Range) -> bool:
        """Whether the log holds the place to go on at; if not, the alarm is raised and the partition rests for good.

        A handle that another aggregator has overtaken may stand before what was trimmed since, and what was held a
        moment ago may lie behind it: both are looked at anew first.
        """
        if source in self._alarmed:
            return False
        if self._stands_in(source, held):
            return True
        # The log before the table: another aggregator trims only behind what is in the lake already.
        held = self._log.range(self._topic, partition)
        self._reload()
        if not source.startswith(f"{self._log.log_id(self._topic)}/"):
            raise Conflict(f"{source} is gone; the log was made anew")
        if self._table.next_offset(source) > held.next:
            held = Range(held.first, self._log.range(self._topic, partition).next)
        if self._stands_in(source, held):
            return True
        self._alarmed.add(source)
        metrics.LAKE_OFFSET_ALARMS.labels(self._topic).inc()
        logger.error(
            "the lake's offset is outside the event log; nothing more of it is ingested",
            extra={
                "source": source,
                "stored": self._table.next_offset(source),
                "log_first": held.first,
                "log_next": held.next,
            },
        )
        return False

    def _stands_in(self, source: str, held: Range) -> bool:
        return held.first <= self._table.next_offset(source) <= held.next

    def _convert(self, records: list[Record], log_id: str) -> tuple[pa.Table, list[Row]]:
        """Rows without repeated events, and dead letters."""
        offsets = [record.offset for record in records]
        made = rows_of(self._name, [record.payload for record in records], log_id, records[0].partition, offsets)
        dead = [
            tables.dead_letter_row(
                record.topic, record.key, record.payload, reason, Position(log_id, record.partition, record.offset)
            )
            for place, reason in sorted(made.poison.items())
            for record in (records[place],)
        ]
        rows = self._guard.rows(self._name, made.table) if self._guard else made.table
        fresh: dict[str, int] = {}
        repeated: list[int] = []
        for place, event_id in enumerate(rows["event_id"].to_pylist()):
            if event_id in fresh or event_id in self._seen:
                repeated.append(place)
            else:
                fresh[event_id] = place
        if repeated:
            again, rows = (rows.take(pa.array(places, pa.int64())) for places in (repeated, list(fresh.values())))
            self._look_at_repeated(again, rows)
        return rows, dead

    def _look_at_repeated(self, repeated: pa.Table, rows: pa.Table) -> None:
        """The first of an id stands, whatever comes after it; that another one says something else is counted."""
        metrics.LAKE_REPEATED.labels(self._name).inc(repeated.num_rows)
        here = rows.filter(pc.is_in(rows["event_id"], repeated["event_id"].combine_chunks()))
        ids = set(repeated["event_id"].to_pylist()) - set(here["event_id"].to_pylist())
        try:
            stored = self._table.find("event_id", list(ids), rows.column_names, self._seen_since).to_pylist()
        except (Unavailable, DataLoss) as error:
            logger.error("events that came again were not compared", extra={"reason": error.message})
            return
        firsts = {row["event_id"]: row for row in (*stored, *here.to_pylist())}
        for row in repeated.to_pylist():
            first = firsts.get(row["event_id"])
            if first is not None and not tables.say_the_same(first, row):
                metrics.LAKE_CONTRADICTIONS.labels(self._name).inc()
                logger.warning(
                    "an event came again and says something else; the first stands",
                    extra={"table": self._name, "event_id": row["event_id"], "offset": row["log_offset"]},
                )

    def _set_aside(self, dead: list[Row], source: str, following: int) -> None:
        if not dead:
            return
        fresh = self._dead_letters.set_aside(dead, source, following)
        metrics.DEAD_LETTERS.labels(self._topic).inc(len(fresh))
        for row in fresh:
            logger.warning(
                "record set aside", extra={"source": source, "offset": row["log_offset"], "reason": row["reason"]}
            )

    def _make_durable(self, reached: Mapping[int, int]) -> None:
        """Only what is on the disk may be trimmed from the log."""
        noted = self._log.positions(READER)
        moved = {
            (self._topic, partition): following
            for partition, following in reached.items()
            if noted.get((self._topic, partition)) != following
        }
        if not moved:
            return
        self._dead_letters.sync()
        self._table.sync()
        self._reached("synced")
        self._log.commit(READER, moved)
        self._reached("positioned")
        self._table.tidy()
        self._reached("tidied")

    def _reload(self) -> None:
        self._table.reload()
        self._dead_letters.reload()
        self._recall()

    def _recall(self) -> None:
        """The ids of the newest rows. Where they cannot be read none is known: readers drop what is there twice."""
        try:
            self._seen_since = self._table.day_of_newest(_IDS_REMEMBERED)
            rows = self._table.read(["created_unix_ms", "event_id"], self._seen_since).sort_by("created_unix_ms")
        except (Unavailable, DataLoss) as error:
            logger.error("the lake's newest rows cannot be read", extra={"table": self._name, "reason": error.message})
            self._seen_since, self._seen = None, SeenIds(())
            return
        self._seen = SeenIds(rows["event_id"].slice(max(0, rows.num_rows - _IDS_REMEMBERED)).to_pylist())


def _count_strange_times(rows: pa.Table) -> int:
    latest = int(time.time() * 1000) + _AHEAD_MS
    created = rows["created_unix_ms"]
    return int(pc.or_(pc.less(created, _EARLIEST_UNIX_MS), pc.greater(created, latest)).combine_chunks().true_count)
