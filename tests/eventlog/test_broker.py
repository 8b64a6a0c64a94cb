"""A broker of our own: what it wants, in plain words; and topics."""

from dataclasses import replace
from pathlib import Path

import pytest

from attune.errors import FailedPrecondition, NotFound
from attune.eventlog import RESPONSES
from attune.eventlog.broker import LocalBroker, fetch_jars
from attune.eventlog.kafka import KafkaLogReader
from attune.eventlog.producer import Message, Producer
from attune.eventlog.topics import TopicRules, create_topics, describe_topics
from tests.brokers import cluster_on
from tests.eventlog.waiting import eventually


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All the programs there are, and an empty cache."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "bin"


def test_what_is_missing_is_said_with_what_to_install(programs: Path) -> None:
    with pytest.raises(FailedPrecondition, match="wants Java 17: install the package openjdk-17-jre-headless"):
        fetch_jars()
    program(programs, "java", "echo 'openjdk version \"11.0.2\"' >&2")
    with pytest.raises(FailedPrecondition, match="wants Java 17; there is "):
        fetch_jars()
    program(programs, "java", "echo 'openjdk version \"21.0.2\"' >&2")
    with pytest.raises(FailedPrecondition, match=r"wants Maven once.* install the package maven, or name a broker"):
        fetch_jars()
    program(programs, "mvn", "echo '[ERROR] no route to the repository'; exit 1")
    with pytest.raises(FailedPrecondition, match=r"Maven cannot bring the jars for kafka-4.*ERROR. no route"):
        fetch_jars()


def test_jars_are_brought_once_and_whole(programs: Path, tmp_path: Path) -> None:
    program(programs, "java", "echo 'openjdk version \"17.0.2\"' >&2")
    program(
        programs, "mvn", 'for last; do :; done; folder=${last#*=}; /bin/mkdir "$folder"; echo x > "$folder/kafka.jar"'
    )
    jars = fetch_jars()
    assert [file.name for file in jars.iterdir()] == ["kafka.jar"]
    assert [file.name for file in (tmp_path / "cache" / "attune").iterdir()] == [jars.name]
    (programs / "mvn").unlink()
    assert fetch_jars() == jars


def test_topics_are_made_once_and_stay_as_they_are(broker: LocalBroker) -> None:
    cluster = cluster_on(broker, partitions=3)
    before = describe_topics(cluster)
    assert [(topic.name, topic.partitions, topic.replication, topic.records) for topic in before] == [
        (cluster.topic("attune.responses"), 3, 1, 0),
        (cluster.topic("attune.feedback"), 3, 1, 0),
        (cluster.topic("attune.dead-letter"), 1, 1, 0),
    ]
    assert create_topics(cluster, TopicRules(7, None, 1, 1)) == []
    assert describe_topics(cluster) == before


def test_topics_that_kafka_does_not_make_are_said_with_the_reason(broker: LocalBroker) -> None:
    cluster = replace(cluster_on(broker), topic_prefix="other.")
    with pytest.raises(FailedPrecondition, match=r"does not make the topic other\.responses: .*replication"):
        create_topics(cluster, TopicRules(1, 3, 1, 1))


def test_topics_that_are_missing_are_named_with_what_makes_them(broker: LocalBroker) -> None:
    cluster = replace(cluster_on(broker), topic_prefix="missing.")
    assert describe_topics(cluster) == []
    with pytest.raises(NotFound, match=r"missing\.responses, missing\.feedback, missing\.dead-letter; `attune topics"):
        KafkaLogReader(cluster, "aggregator")
    producer = Producer(cluster)
    sent = [Message(cluster.topic(RESPONSES), b"key", b"payload")] * 2

    def is_named() -> bool:  # unless a connection failed in the seconds before, in another test
        outcomes = producer.send(sent)
        return isinstance(outcomes[0], NotFound) and "`attune topics create`" in outcomes[0].message

    eventually(is_named, 20)
    producer.close()
