"""What strangers write into the topics, and what brokers do to them: counted, set aside, and nothing comes in twice."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from prometheus_client import REGISTRY

from attune.aggregator.ingest import Ingest
from attune.eventlog import FEEDBACK, RESPONSES, TOPICS
from attune.eventlog.broker import LocalBroker
from attune.eventlog.topics import TopicRules, create_topics
from attune.lake.lake import Lake
from attune.lake.tables import to_arrow
from tests.brokers import cluster_on
from tests.eventlog.waiting import eventually
from tests.lake.events import response_event, thumb_event
from tests.shipper.ferry import Ferry, poll

MIB = 1 << 20


def alarms() -> float:
    return REGISTRY.get_sample_value("attune_lake_offset_alarms_total", {"topic": RESPONSES}) or 0


def dead(ferry: Ferry) -> dict[tuple[str, int], tuple[str, int]]:
    rows = Lake(ferry.folder / "lake").dead_letter.read(["topic", "log_offset", "reason", "payload_bytes"]).to_pylist()
    return {(row["topic"], row["log_offset"]): (row["reason"], row["payload_bytes"]) for row in rows}


def is_quiet(ingests: list[Ingest]) -> Callable[[], bool]:
    return lambda: not sum(poll(ingest) for ingest in ingests)


@pytest.fixture
def wide(broker: LocalBroker, tmp_path: Path) -> "Ferry":
    """Topics of one partition that take messages of 64 MiB, although we write none above 1."""
    cluster = cluster_on(broker, max_record_bytes=64 * MIB)
    return Ferry(tmp_path, replace(cluster, max_record_bytes=MIB, request_seconds=5, delivery_seconds=5))


def test_strange_messages_are_set_aside_and_the_others_go_on(wide: Ferry) -> None:
    stranger = KafkaProducer(bootstrap_servers=list(wide.cluster.servers), max_request_size=64 * MIB)
    topic, votes = wide.cluster.topic(RESPONSES), wide.cluster.topic(FEEDBACK)
    later = response_event(7)
    later.header.schema_version = 99
    stranger.send(topic, response_event(1).SerializeToString(), timestamp_ms=0)
    stranger.send(topic, os.urandom(1000)).get(10)
    stranger.send(topic, os.urandom(50 * MIB)).get(30)
    stranger.send(topic, later.SerializeToString(), headers=[("schema_version", b"1")]).get(10)
    stranger.send(topic, key=b"deleted", value=None).get(10)
    stranger.send(topic, response_event(2).SerializeToString(), timestamp_ms=4_102_444_800_000).get(10)
    stranger.send(topic, response_event(1, text="another body").SerializeToString()).get(10)
    stranger.send(votes, thumb_event(1, 1).SerializeToString()).get(10)
    stranger.close()
    try:
        reader = wide.reader()
        ingests = wide.ingests(reader)
        eventually(lambda: is_quiet(ingests)() and len(wide.ids()) == 3, 30)
        assert wide.ids() == ["feedback-1", "response-1", "response-2"]
        found = dead(wide)
        assert set(found) == {(RESPONSES, offset) for offset in (1, 2, 3, 4)}
        assert found[RESPONSES, 2][1] == 50 * MIB
        assert found[RESPONSES, 3][0] == "schema_version is 99; this version knows 1"
        texts = Lake(wide.folder / "lake").responses.read(["text"])["text"].to_pylist()
        assert sorted(texts) == ["Done. 1", "Done. 2"]  # the first of an id stands
    finally:
        wide.close()


def test_records_that_expired_before_they_were_ingested_are_an_alarm_and_never_a_reset(wide: Ferry) -> None:
    try:
        wide.append(*[response_event(n) for n in range(5)], *[thumb_event(n, n) for n in range(3)])
        wide.ship_all()
        admin = KafkaAdminClient(bootstrap_servers=list(wide.cluster.servers))
        admin.delete_records({TopicPartition(wide.cluster.topic(RESPONSES), 0): 2})
        admin.close()
        before = alarms()
        ingests = wide.ingests(wide.reader())
        eventually(lambda: is_quiet(ingests)() and len(wide.ids()) == 3, 20)
        assert alarms() == before + 1
        assert wide.ids() == ["feedback-0", "feedback-1", "feedback-2"]
    finally:
        wide.close()


def test_a_lake_ahead_of_the_topic_is_an_alarm(wide: Ferry) -> None:
    try:
        wide.append(*[response_event(n) for n in range(5)])
        wide.ship_all()
        reader = wide.reader()
        source = f"{reader.log_id(RESPONSES)}/{RESPONSES}/0"
        Lake(wide.folder / "lake").responses.append(to_arrow("responses", []), source, 0, 50)
        before = alarms()
        ingests = wide.ingests(reader)
        eventually(lambda: is_quiet(ingests)() and alarms() == before + 1)
        assert wide.ids() == []
    finally:
        wide.close()


def test_a_topic_that_is_made_anew_under_the_aggregator_begins_at_its_own_beginning(wide: Ferry) -> None:
    try:
        wide.append(*[response_event(n) for n in range(5)])
        wide.ship_all()
        ingests = wide.ingests(wide.reader())
        eventually(lambda: is_quiet(ingests)() and len(wide.ids()) == 5, 20)
        admin = KafkaAdminClient(bootstrap_servers=list(wide.cluster.servers))
        names = [wide.cluster.topic(topic) for topic in TOPICS]
        admin.delete_topics(names)
        eventually(lambda: not set(names) & set(admin.list_topics()))
        admin.close()
        before = alarms()
        eventually(lambda: poll(ingests[0]) == 1)  # it is told that the topic is gone
        create_topics(wide.cluster, TopicRules(1, None, 1, 1))
        # More than the old one had: its offset lies in the new one's range.
        wide.append(*[response_event(n) for n in range(3, 20)])
        wide.ship_all()
        eventually(lambda: is_quiet(ingests)() and len(wide.ids()) == 20, 60)
        assert wide.ids() == sorted({f"response-{n}" for n in range(20)})
        assert alarms() == before
    finally:
        wide.close()
