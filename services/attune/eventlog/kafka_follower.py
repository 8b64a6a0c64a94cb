"""Looking on at the event log in Kafka: all partitions that there are when it begins, without a group."""

from kafka import KafkaConsumer, TopicPartition

from attune.eventlog.cluster import Cluster, reported
from attune.eventlog.follower import MOST_BYTES, MOST_RECORDS, News
from attune.eventlog.log import TOPICS, Record
from attune.eventlog.topics import look_up

_POLL_MS = 100


class KafkaFollower:
    """Raises Unavailable while no broker answers, NotFound while the topics are not there."""

    def __init__(self, cluster: Cluster) -> None:
        admin = cluster.admin()
        try:
            with reported():
                topics = look_up(admin, cluster, TOPICS)
        finally:
            admin.close()
        self._topic = {cluster.topic(topic): topic for topic in TOPICS}
        self._consumer = cluster.make(
            KafkaConsumer,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            allow_auto_create_topics=False,
            max_partition_fetch_bytes=MOST_BYTES,
            metrics_enabled=False,
        )
        try:
            with reported():
                places = [
                    TopicPartition(cluster.topic(name), partition)
                    for name, topic in topics.items()
                    for partition in range(topic.partitions)
                ]
                self._consumer.assign(places)
                self._next = self._consumer.end_offsets(places, timeout_ms=cluster.request_ms)
                for place, offset in self._next.items():
                    self._consumer.seek(place, offset)
        except BaseException:
            self.close()
            raise

    def look(self) -> News:
        news = News()
        with reported():
            polled = self._consumer.poll(_POLL_MS, max_records=MOST_RECORDS)
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
        with reported():
            self._consumer.close(autocommit=False)
