"""The reading side of the event log in Kafka.

A consumer group shares the partitions between any number of aggregators, and moves them while they read
(cooperative-sticky). Where to go on is not asked of Kafka: whoever reads says the offset, which it keeps with what it
made of the records. The group's own offsets are committed for those who watch the lag, and nothing rests on them.
"""

import logging
import time
from collections.abc import Mapping

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import ConsumerRecord
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import OffsetAndMetadata

from attune.errors import InvalidInput, NotFound, Unavailable
from attune.eventlog.cluster import Cluster, reported
from attune.eventlog.log import TOPICS, Range, Record
from attune.eventlog.topics import look_up

logger = logging.getLogger(__name__)

# In flight or parked there is at most this for each partition, or one record where that is larger.
_FETCH_BYTES = 4 << 20
# A partition that is read next waits for the last fetch of the one before it.
_FETCH_WAIT_MS = 20
_POLL_MS = 50
_CLOSE_MS = 2000
_MOVED = (
    kafka_errors.CommitFailedError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.UnknownMemberIdError,
)


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
                metadata_max_age_ms=30_000,
                metrics_enabled=False,
            )
        except BaseException:
            self._admin.close()
            raise
        self._subscribe()
        self._following: dict[TopicPartition, int] = {}  # where the client would go on by itself
        self._committed: dict[TopicPartition, int] = {}

    def log_id(self, topic: str) -> str:
        if topic not in self._log_ids:
            raise NotFound(f"the event log has no topic {topic}")
        return self._log_ids[topic]

    def ranges(self, topic: str) -> Mapping[int, Range]:
        with reported():
            self._poll(0, 1)
            ours = [each for each in self._consumer.assignment() if each.topic == self._cluster.topic(topic)]
            return {each.partition: held for each, held in self._ask(ours).items()}

    def range(self, topic: str, partition: int) -> Range:
        place = self._place(topic, partition)
        with reported():
            self._log_ids = self._look_up()
            if partition not in (self._consumer.partitions_for_topic(place.topic) or ()):
                raise NotFound(f"the event log has no topic {topic} with a partition {partition}")
            return self._ask([place])[place]

    def read(self, topic: str, partition: int, offset: int, limit_records: int, limit_bytes: int) -> list[Record]:
        """Nothing also of a partition that has moved to another reader."""
        place = self._place(topic, partition)
        with reported():
            taken = self._take(place, offset, limit_records)
            if taken:
                self._log_ids = self._look_up()  # so that what was read of a topic that is gone is known as such
        records: list[Record] = []
        taken_bytes = 0
        for each in taken:
            key, payload = bytes(each.key or b""), bytes(each.value or b"")
            taken_bytes += len(key) + len(payload)
            if records and taken_bytes > limit_bytes:
                break
            records.append(Record(topic, partition, each.offset, key, payload))
        if len(records) < len(taken):
            self._following.pop(place, None)
        return records

    def commit(self, reader: str, positions: Mapping[tuple[str, int], int]) -> None:
        """For those who watch the group's lag: a partition that has moved meanwhile is left out without a word."""
        self._check(reader)
        places = {self._place(topic, partition): offset for (topic, partition), offset in positions.items()}
        for place, offset in places.items():
            if not 0 <= offset <= self._following.get(place, 0):
                with reported():
                    held = self._ask([place])[place]
                if not 0 <= offset <= held.next:
                    topic = next(name for name in TOPICS if self._cluster.topic(name) == place.topic)
                    raise InvalidInput(f"position {offset} of {topic}/{place.partition} is outside 0 to {held.next}")
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
        for topic in TOPICS:
            for place in self._consumer.assignment():
                if place.topic != self._cluster.topic(topic):
                    continue
                if place not in self._committed:
                    with reported():
                        noted = self._consumer.committed(place, timeout_ms=self._cluster.request_ms)
                    if noted is None:
                        continue
                    self._committed[place] = noted
                found[topic, place.partition] = self._committed[place]
        return found

    def close(self) -> None:
        """Leaves the group, so that others take over at once."""
        try:
            with reported():
                self._consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)
        except Unavailable as error:
            logger.info("the consumer group was not left in order", extra={"reason": error.message})
        self._admin.close()

    def _take(self, place: TopicPartition, offset: int, limit_records: int) -> list[ConsumerRecord]:
        """Records from the offset on; empty when there are none, or when the partition is not ours any more."""
        deadline = time.monotonic() + self._cluster.request_seconds
        while place in self._consumer.assignment():
            if self._following.get(place) != offset:
                self._consumer.seek(place, offset)
                self._following[place] = offset
            taken = [each for each in self._poll(_POLL_MS, limit_records, place) if each.offset >= offset]
            if taken:
                return taken
            if self._ask([place])[place].next <= offset:
                break
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"Kafka gave no record of {place.topic}/{place.partition} from {offset} on in "
                    f"{self._cluster.request_seconds:g} s"
                )
        return []

    def _poll(self, wait_ms: int, limit_records: int, place: TopicPartition | None = None) -> list[ConsumerRecord]:
        """Takes part in the group; fetches of this one place, if it is ours, and of no other."""
        self._rest(except_for=place)
        polled = self._consumer.poll(wait_ms, max_records=limit_records)
        for other, records in polled.items():
            self._following[other] = records[-1].offset + 1
            if other != place:  # new to us, so that it was not at rest; it is read again when it is asked for
                self._following.pop(other)
        self._rest()
        for gone in self._following.keys() - self._consumer.assignment():
            del self._following[gone]
        for gone in self._committed.keys() - self._consumer.assignment():
            del self._committed[gone]
        return polled.get(place, []) if place else []

    def _rest(self, except_for: TopicPartition | None = None) -> None:
        ours = self._consumer.assignment()
        self._consumer.pause(*(ours - {except_for}))
        if except_for in ours:
            self._consumer.resume(except_for)

    def _ask(self, places: list[TopicPartition]) -> dict[TopicPartition, Range]:
        if not places:
            return {}
        wait_ms = self._cluster.request_ms
        first = self._consumer.beginning_offsets(places, timeout_ms=wait_ms)
        following = self._consumer.end_offsets(places, timeout_ms=wait_ms)
        return {place: Range(first[place], following[place]) for place in places}

    def _subscribe(self) -> None:
        """With what is known of the topics at hand: a first member that shares out before, shares out nothing, and may
        rest with that."""
        with reported():
            self._consumer.subscribe([self._cluster.topic(topic) for topic in TOPICS])
            for topic in TOPICS:
                self._consumer.partitions_for_topic(self._cluster.topic(topic))

    def _look_up(self) -> dict[str, str]:
        with reported():
            return {name: topic.log_id for name, topic in look_up(self._admin, self._cluster, TOPICS).items()}

    def _place(self, topic: str, partition: int) -> TopicPartition:
        self.log_id(topic)
        return TopicPartition(self._cluster.topic(topic), partition)

    def _check(self, reader: str) -> None:
        if reader != self._reader:
            raise InvalidInput(f"this is the reader {self._reader}, not {reader}")
