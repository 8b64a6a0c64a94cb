"""The topics in Kafka: made once, and looked at."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec
from kafka.errors import TopicAlreadyExistsError, for_code

from attune.errors import FailedPrecondition, NotFound, Unavailable
from attune.eventlog.cluster import Cluster, reported
from attune.eventlog.log import TOPICS
from attune.settings import KafkaSettings

DEAD_LETTER = "attune.dead-letter"
ALL_TOPICS = (*TOPICS, DEAD_LETTER)

_DAY_MS = 86_400_000
_POLL_MS = 200
# Of the time for which records are kept, a segment takes up those of so much.
_SEGMENT_SHARE = 0.1
# How often brokers look, and how long they keep what they deleted: minutes.
_BROKERS_MS = 3_600_000


@dataclass(frozen=True)
class TopicRules:
    """How topics are made."""

    partitions: int
    replication: int | None
    retention_days: float
    dead_letter_retention_days: float

    @classmethod
    def of(cls, settings: KafkaSettings) -> "TopicRules":
        return cls(
            settings.partitions, settings.replication, settings.retention_days, settings.dead_letter_retention_days
        )


@dataclass(frozen=True)
class Topic:
    """A topic as the brokers have it."""

    name: str
    log_id: str
    partitions: int
    replication: int
    records: int = 0


def create_topics(cluster: Cluster, rules: TopicRules) -> list[str]:
    """Makes those that are not there; what is there stays as it is. Returns the names in Kafka of the new ones.

    Times are the brokers' (LogAppendTime): a record that waited in the spool is kept as long as the others, and one
    from a machine whose clock is wrong is not refused.
    """
    admin = cluster.admin()
    made = []
    try:
        for topic in ALL_TOPICS:
            dead = topic == DEAD_LETTER
            days = rules.dead_letter_retention_days if dead else rules.retention_days
            wanted = {
                "num_partitions": 1 if dead else rules.partitions,
                "replication_factor": rules.replication or -1,
                "configs": {
                    "cleanup.policy": "delete",
                    "retention.ms": str(int(days * _DAY_MS)),
                    # A record goes with its segment, that is when the last one beside it is old enough.
                    "segment.ms": str(max(1, int(days * _DAY_MS * _SEGMENT_SHARE))),
                    "message.timestamp.type": "LogAppendTime",
                    "max.message.bytes": str(cluster.max_message_bytes),
                },
            }
            name = cluster.topic(topic)
            answer = admin.create_topics({name: wanted}, raise_errors=False)["topics"][0]
            error = for_code(answer["error_code"])
            if error is TopicAlreadyExistsError:
                continue
            if answer["error_code"]:
                raise FailedPrecondition(
                    f"Kafka does not make the topic {name}: {answer['error_message'] or error.__name__}"
                )
            made.append(name)
        with reported():
            admin.wait_for_topics([cluster.topic(topic) for topic in ALL_TOPICS], timeout_ms=cluster.request_ms)
    finally:
        admin.close()
    return made


def describe_topics(cluster: Cluster) -> list[Topic]:
    """Those of ours that are there."""
    admin = cluster.admin()
    try:
        with reported():
            topics = look_up(admin, cluster, ALL_TOPICS, absent_is_fine=True).values()
            return [replace(topic, records=_count(admin, topic)) for topic in topics]
    finally:
        admin.close()


def forgotten_after_ms(cluster: Cluster) -> dict[str, int | None]:
    """By its name in Kafka, how long after a record came nothing of it is left in the topic; None: it is kept for ever.

    As the brokers have it, whatever the topics were made with. Raises Unavailable.
    """
    admin = cluster.admin()
    try:
        with reported():
            names = [topic.name for topic in look_up(admin, cluster, ALL_TOPICS, absent_is_fine=True).values()]
            wanted = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
            told = admin.describe_configs(wanted, config_filter="all")["topic"] if names else {}
    finally:
        admin.close()
    return {name: _longest_ms({key: entry["value"] for key, entry in values.items()}) for name, values in told.items()}


def _longest_ms(values: Mapping[str, str]) -> int | None:
    retention = int(values["retention.ms"])
    if retention < 0 or "delete" not in values["cleanup.policy"]:
        return None
    return retention + int(values["segment.ms"]) + int(values["file.delete.delay.ms"]) + _BROKERS_MS


@dataclass(frozen=True)
class TopicRecord:
    """A record as the brokers have it."""

    key: bytes
    payload: bytes
    headers: dict[str, bytes]


def read_whole(cluster: Cluster, topic: str) -> Iterator[TopicRecord]:
    """What the topic holds now, a partition at a time, oldest first; belongs to no group and commits nothing."""
    name = cluster.topic(topic)
    consumer = cluster.make(
        KafkaConsumer, enable_auto_commit=False, auto_offset_reset="earliest", allow_auto_create_topics=False
    )
    try:
        with reported():
            for partition in sorted(consumer.partitions_for_topic(name)):
                place = TopicPartition(name, partition)
                consumer.assign([place])
                consumer.seek_to_beginning(place)
                end = consumer.end_offsets([place], timeout_ms=cluster.request_ms)[place]
                deadline = time.monotonic() + cluster.request_seconds
                while consumer.position(place, timeout_ms=cluster.request_ms) < end:
                    for record in consumer.poll(_POLL_MS).get(place, ()):
                        yield TopicRecord(record.key or b"", record.value or b"", dict(record.headers))
                        deadline = time.monotonic() + cluster.request_seconds
                    if time.monotonic() > deadline:
                        raise Unavailable(f"Kafka gave no record of {name} in {cluster.request_seconds:g} s")
    finally:
        consumer.close(autocommit=False)


def _count(admin: KafkaAdminClient, topic: Topic) -> int:
    places = [TopicPartition(topic.name, partition) for partition in range(topic.partitions)]
    first, following = (
        admin.list_partition_offsets(dict.fromkeys(places, spec)) for spec in (OffsetSpec.EARLIEST, OffsetSpec.LATEST)
    )
    return sum(following[place].offset - first[place].offset for place in places)


def look_up(
    admin: KafkaAdminClient, cluster: Cluster, topics: tuple[str, ...], *, absent_is_fine: bool = False
) -> dict[str, Topic]:
    """By our names. A topic that is made anew has another log id. Raises NotFound for one that is not there."""
    cluster_id = admin.describe_cluster()["cluster_id"]
    found = {}
    for told in admin.describe_topics([cluster.topic(topic) for topic in topics]):
        if told["error_code"] == 0:
            found[told["name"]] = Topic(
                name=told["name"],
                log_id=f"{cluster_id}.{str(told['topic_id']).replace('-', '')}",
                partitions=len(told["partitions"]),
                replication=min((len(each["replica_nodes"]) for each in told["partitions"]), default=0),
            )
    missing = [cluster.topic(topic) for topic in topics if cluster.topic(topic) not in found]
    if missing and not absent_is_fine:
        raise NotFound(f"Kafka has no topic {', '.join(missing)}; `attune topics create` makes them")
    return {topic: found[cluster.topic(topic)] for topic in topics if cluster.topic(topic) in found}
