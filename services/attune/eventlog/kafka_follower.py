"""Looking on at the event log in Kafka: at all partitions, without a group."""

import time
from collections.abc import Iterable, Mapping

from kafka import KafkaConsumer, TopicPartition

from attune.eventlog.cluster import Cluster, reported
from attune.eventlog.follower import MOST_BYTES, MOST_RECORDS, News
from attune.eventlog.log import TOPICS, Record
from attune.eventlog.topics import Topic, look_up

_POLL_MS = 100
_NOTICE_SECONDS = 2.0


class KafkaFollower:
    """Raises Unavailable while no broker answers, NotFound while the topics are not there.

    A topic that is made anew, and a partition that is added, are new as a whole.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._topic = {cluster.topic(topic): topic for topic in TOPICS}
        self._next: dict[TopicPartition, int] = {}
        self._admin = cluster.admin()
        try:
            with reported():
                self._topics = look_up(self._admin, cluster, TOPICS)
            self._consumer = cluster.make(
                KafkaConsumer,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                allow_auto_create_topics=False,
                max_partition_fetch_bytes=MOST_BYTES,
                metrics_enabled=False,
            )
        except BaseException:
            self._admin.close()
            raise
        try:
            with reported():
                places = _places(self._topics.values())
                self._consumer.assign(places)
                self._go_on_at(self._consumer.end_offsets(places, timeout_ms=cluster.request_ms))
        except BaseException:
            self.close()
            raise

    def look(self) -> News:
        news = News()
        with reported():
            polled = self._consumer.poll(_POLL_MS, max_records=MOST_RECORDS)
            # What came of a topic that was made anew meanwhile may begin in its middle.
            if (polled or time.monotonic() >= self._notice_at) and self._notice_new_topics():
                return news
        for place, records in polled.items():
            for each in records:
                news.missed += max(0, each.offset - self._next[place])
                self._next[place] = each.offset + 1
                news.records.append(
                    Record(
                        self._topic[place.topic],
                        place.partition,
                        each.offset,
                        bytes(each.key or b""),
                        bytes(each.value or b""),
                    )
                )
        return news

    def close(self) -> None:
        self._admin.close()
        with reported():
            self._consumer.close(autocommit=False)

    def _go_on_at(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._next = dict(offsets)
        for place, offset in offsets.items():
            self._consumer.seek(place, offset)
        self._notice_at = time.monotonic() + _NOTICE_SECONDS

    def _notice_new_topics(self) -> bool:
        """One that was deleted and is not there again yet is waited for."""
        self._notice_at = time.monotonic() + _NOTICE_SECONDS
        found = {**self._topics, **look_up(self._admin, self._cluster, TOPICS, absent_is_fine=True)}
        if found == self._topics:
            return False
        same = {topic.name for name, topic in found.items() if topic.log_id == self._topics[name].log_id}
        places = _places(found.values())
        known = {place: self._next[place] for place in places if place.topic in same and place in self._next}
        self._consumer.assign(places)
        new = [place for place in places if place not in known]
        first = self._consumer.beginning_offsets(new, timeout_ms=self._cluster.request_ms)
        self._go_on_at(known | first)
        self._topics = found
        return True


def _places(topics: Iterable[Topic]) -> list[TopicPartition]:
    return [TopicPartition(topic.name, partition) for topic in topics for partition in range(topic.partitions)]
