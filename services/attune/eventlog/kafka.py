"""The reading side of the event log in Kafka.

A consumer group shares the partitions between any number of aggregators, and moves them while they read
(cooperative-sticky). Where to go on is not asked of Kafka: whoever reads says the offset, which it keeps with what it
made of the records. The group's own offsets are committed for those who watch the lag, and nothing rests on them.
"""

import logging
import time
from collections import deque
from collections.abc import Mapping

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import ConsumerRecord
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import OffsetAndMetadata

from attune.errors import InvalidInput, NotFound, Unavailable
from attune.eventlog.cluster import Cluster, reported
from attune.eventlog.log import TOPICS, Range, Record
from attune.eventlog.topics import ALL_TOPICS, look_up

logger = logging.getLogger(__name__)

# In flight or waiting there is at most twice this for each partition, or one record where that is larger.
_FETCH_BYTES = 16 << 20
# A partition that is read next waits for the last fetch of the one before it.
_FETCH_WAIT_MS = 20
_POLL_MS = 50
_ALL = 1 << 30
# A member that joins the group must see it through within one poll: what is over when the next one begins, begins anew.
_JOIN_SECONDS = 1.0
_JOIN_STEP_MS = 100
# While somebody joins, all wait for the slowest, and one that builds a dataset is slow: after that long without it.
_BUSY_MS = 60_000
_CLOSE_MS = 2000
_MOVED = (
    kafka_errors.CommitFailedError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.UnknownMemberIdError,
)


class _Fetched:
    """What has come of a partition and was not asked for yet."""

    def __init__(self) -> None:
        self.waiting: deque[ConsumerRecord] = deque()
        self.following = -1  # the offset that goes on behind what was read last

    def begin(self, offset: int) -> None:
        self.waiting.clear()
        self.following = offset

    def take(self, records: list[ConsumerRecord]) -> None:
        """Where what was asked for is gone the client goes to the first that is there, which may lie before it."""
        self.waiting.extend(each for each in records if each.offset >= self.following)


class KafkaLogReader:
    """One member of a reader's group. Not thread-safe; to be asked for `ranges` often, or its partitions go to others.

    Only the partition that is being read is fetched, the others rest: memory stays bounded however far behind it is.
    Raises Unavailable while no broker answers, NotFound while the topics are not there.
    """

    def __init__(self, cluster: Cluster, reader: str, *, session_seconds: float = 10) -> None:
        self._cluster = cluster
        self._reader = reader
        self._admin = cluster.admin()
        try:
            with reported():
                look_up(self._admin, cluster, ALL_TOPICS)
            self._log_ids = self._look_up()
            self._consumer = cluster.make(
                KafkaConsumer,
                group_id=cluster.group(reader),
                partition_assignment_strategy=[CooperativeStickyAssignor],
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                allow_auto_create_topics=False,
                fetch_max_wait_ms=_FETCH_WAIT_MS,
                max_partition_fetch_bytes=_FETCH_BYTES,
                session_timeout_ms=int(session_seconds * 1000),
                heartbeat_interval_ms=int(session_seconds * 250),
                max_poll_interval_ms=_BUSY_MS,
                metadata_max_age_ms=30_000,
                metrics_enabled=False,
            )
        except BaseException:
            self._admin.close()
            raise
        self._fetched: dict[TopicPartition, _Fetched] = {}
        self._committed: dict[TopicPartition, int | None] = {}
        try:
            self._subscribe()
        except BaseException:
            self.close()
            raise

    def log_id(self, topic: str) -> str:
        if topic not in self._log_ids:
            raise NotFound(f"the event log has no topic {topic}")
        return self._log_ids[topic]

    def ranges(self, topic: str) -> Mapping[int, Range]:
        with reported():
            self._poll(0)
            ours = [each for each in self._consumer.assignment() if each.topic == self._cluster.topic(topic)]
            return {each.partition: held for each, held in self._ask(ours).items()}

    def ends(self, topic: str) -> Mapping[int, int]:
        name = self._cluster.topic(topic)
        with reported():
            self._notice_new_topics()
            places = [TopicPartition(name, each) for each in self._consumer.partitions_for_topic(name) or ()]
            return {each.partition: held.next for each, held in self._ask(places).items()}

    def range(self, topic: str, partition: int) -> Range:
        place = self._place(topic, partition)
        with reported():
            self._notice_new_topics()
            if partition not in (self._consumer.partitions_for_topic(place.topic) or ()):
                raise NotFound(f"the event log has no topic {topic} with a partition {partition}")
            return self._ask([place])[place]

    def read(self, topic: str, partition: int, offset: int, limit_records: int, limit_bytes: int) -> list[Record]:
        """Nothing also of a partition that has moved to another reader."""
        place = self._place(topic, partition)
        with reported():
            fetched = self._fetch(place, offset)
        records: list[Record] = []
        taken_bytes = 0
        while fetched.waiting and len(records) < limit_records:
            key, payload = bytes(fetched.waiting[0].key or b""), bytes(fetched.waiting[0].value or b"")
            taken_bytes += len(key) + len(payload)
            if records and taken_bytes > limit_bytes:
                break
            records.append(Record(topic, partition, fetched.waiting.popleft().offset, key, payload))
            fetched.following = records[-1].offset + 1
        return records

    def commit(self, reader: str, positions: Mapping[tuple[str, int], int]) -> None:
        """For those who watch the group's lag: a partition that has moved meanwhile is left out without a word."""
        self._check(reader)
        places = {self._place(topic, partition): offset for (topic, partition), offset in positions.items()}
        for (topic, partition), offset in positions.items():
            place = self._place(topic, partition)
            if not 0 <= offset <= self._fetched.get(place, _Fetched()).following:
                with reported():
                    held = self._ask([place])[place]
                if not 0 <= offset <= held.next:
                    raise InvalidInput(f"position {offset} of {topic}/{partition} is outside 0 to {held.next}")
        ours = self._consumer.assignment()
        notes = {place: OffsetAndMetadata(offset, "", -1) for place, offset in places.items() if place in ours}
        try:
            with reported():
                if notes:
                    self._consumer.commit(notes, timeout_ms=self._cluster.request_ms)
        except Unavailable as error:
            if not isinstance(error.__cause__, _MOVED):
                raise
        self._committed.update(places)

    def positions(self, reader: str) -> dict[tuple[str, int], int]:
        """Of the partitions that this member has."""
        self._check(reader)
        found = {}
        ours = self._consumer.assignment()
        for gone in self._committed.keys() - ours:
            del self._committed[gone]
        for topic in TOPICS:
            for place in ours:
                if place.topic != self._cluster.topic(topic):
                    continue
                if place not in self._committed:
                    with reported():
                        noted = self._consumer.committed(place, timeout_ms=self._cluster.request_ms)
                    self._committed[place] = noted
                if (noted := self._committed[place]) is not None:
                    found[topic, place.partition] = noted
        return found

    def close(self) -> None:
        """Leaves the group, so that others take over at once."""
        try:
            with reported():
                self._consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)
        except Unavailable as error:
            logger.info("the consumer group was not left in order", extra={"reason": error.message})
        self._admin.close()

    def _subscribe(self) -> None:
        """With what is known of the topics at hand: a first member that shares out before shares out nothing, and may
        rest with that."""
        with reported():
            self._consumer.subscribe([self._cluster.topic(topic) for topic in TOPICS])
            for topic in TOPICS:
                self._consumer.partitions_for_topic(self._cluster.topic(topic))

    def _fetch(self, place: TopicPartition, offset: int) -> _Fetched:
        """Has records wait from the offset on; none when there are none, or when the partition is not ours any more."""
        deadline = time.monotonic() + self._cluster.request_seconds
        while place in self._consumer.assignment():
            fetched = self._fetched.setdefault(place, _Fetched())
            if fetched.following != offset:
                self._consumer.seek(place, offset)
                fetched.begin(offset)
            if not fetched.waiting:
                self._poll(_POLL_MS, place)
            if fetched.waiting or self._ask([place])[place].next <= offset:
                return fetched
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"Kafka gave no record of {place.topic}/{place.partition} from {offset} on in "
                    f"{self._cluster.request_seconds:g} s"
                )
        return _Fetched()

    def _poll(self, wait_ms: int, place: TopicPartition | None = None) -> None:
        """Takes part in the group; fetches of this one place, if it is ours, and of no other.

        Takes all that has come: of a partition that rests while the client holds half-read records of it, the client
        would never fetch again.
        """
        self._rest(except_for=place)
        deadline = time.monotonic() + _JOIN_SECONDS
        polled = self._consumer.poll(wait_ms, max_records=_ALL)
        while not polled and self._consumer._coordinator.need_rejoin() and time.monotonic() < deadline:
            polled = self._consumer.poll(_JOIN_STEP_MS, max_records=_ALL)
        self._rest()
        ours = self._consumer.assignment()
        for gone in [each for each in self._fetched if each not in ours]:
            del self._fetched[gone]
        if any(each in self._fetched for each in polled):
            self._notice_new_topics()
        for each, records in polled.items():
            if each in self._fetched:
                self._fetched[each].take(records)

    def _rest(self, except_for: TopicPartition | None = None) -> None:
        ours = self._consumer.assignment()
        self._consumer.pause(*(ours - {except_for}))
        if except_for in ours:
            self._consumer.resume(except_for)

    def _notice_new_topics(self) -> None:
        """What was read of a topic that has been made anew meanwhile may be of the one or of the other."""
        log_ids = self._look_up()
        if log_ids != self._log_ids:
            self._log_ids = log_ids
            self._fetched.clear()

    def _ask(self, places: list[TopicPartition]) -> dict[TopicPartition, Range]:
        if not places:
            return {}
        wait_ms = self._cluster.request_ms
        first = self._consumer.beginning_offsets(places, timeout_ms=wait_ms)
        following = self._consumer.end_offsets(places, timeout_ms=wait_ms)
        return {place: Range(first[place], following[place]) for place in places}

    def _look_up(self) -> dict[str, str]:
        with reported():
            return {name: topic.log_id for name, topic in look_up(self._admin, self._cluster, TOPICS).items()}

    def _place(self, topic: str, partition: int) -> TopicPartition:
        self.log_id(topic)
        return TopicPartition(self._cluster.topic(topic), partition)

    def _check(self, reader: str) -> None:
        if reader != self._reader:
            raise InvalidInput(f"this is the reader {self._reader}, not {reader}")
