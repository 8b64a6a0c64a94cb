"""Looking on at a log: from now on, everything, and nothing waits for it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attune.errors import NotFound
from attune.eventlog import FEEDBACK, RESPONSES, SqliteLog
from attune.eventlog.broker import LocalBroker
from attune.eventlog.follower import MOST_RECORDS, Follower, SpoolFollower
from attune.eventlog.kafka_follower import KafkaFollower
from attune.eventlog.producer import Message, Producer
from attune.eventlog.topics import TopicRules, create_topics, describe_topics
from tests.brokers import cluster_on
from tests.eventlog.waiting import eventually

Append = Callable[..., None]


def open_log(folder: Path) -> SqliteLog:
    return SqliteLog(folder, max_bytes=64 << 20, readers=("aggregator",), feedback_share=0.25)


@pytest.fixture(params=["sqlite", "kafka"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Append, Callable[[], Follower]]]:
    """How to append, and how to look on."""
    if request.param == "sqlite":
        spool = open_log(tmp_path)

        def append(topic: str, *payloads: bytes) -> None:
            for future in [spool.append(topic, b"key", payload) for payload in payloads]:
                future.result(10)

        yield append, lambda: SpoolFollower(tmp_path)
        spool.close()
        return
    cluster = cluster_on(request.getfixturevalue("broker"), partitions=3)
    producer = Producer(cluster)

    def produce(topic: str, *payloads: bytes) -> None:
        messages = [Message(cluster.topic(topic), payload, payload) for payload in payloads]
        assert producer.send(messages) == [None] * len(messages)

    yield produce, lambda: KafkaFollower(cluster)
    producer.close()


def take(follower: Follower, count: int) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []

    def all_there() -> bool:
        news = follower.look()
        assert news.missed == 0
        found.extend((record.topic, record.payload) for record in news.records)
        return len(found) >= count

    eventually(all_there)
    return found


def test_what_comes_after_it_began_is_seen_once(log: tuple[Append, Callable[[], Follower]]) -> None:
    append, follow = log
    append(RESPONSES, b"before")
    follower = follow()
    assert follower.look().records == []
    payloads = [b"%d" % number for number in range(MOST_RECORDS * 2)]
    append(RESPONSES, *payloads)
    append(FEEDBACK, b"vote")
    found = take(follower, len(payloads) + 1)
    assert sorted(found) == sorted([(RESPONSES, payload) for payload in payloads] + [(FEEDBACK, b"vote")])
    assert follower.look().records == []
    follower.close()


def test_a_follower_holds_back_no_trimming_and_counts_what_it_missed(tmp_path: Path) -> None:
    spool = open_log(tmp_path)
    follower = SpoolFollower(tmp_path)
    for number in range(5):
        spool.append(RESPONSES, b"key", b"%d" % number).result(10)
    spool.commit("aggregator", {(RESPONSES, 0): 3})
    eventually(lambda: spool.range(RESPONSES, 0).first == 3)
    news = follower.look()
    assert ([record.payload for record in news.records], news.missed) == ([b"3", b"4"], 3)
    spool.commit("aggregator", {(RESPONSES, 0): 5})
    assert follower.look().missed == 0
    spool.append(RESPONSES, b"key", b"5").result(10)
    spool.commit("aggregator", {(RESPONSES, 0): 6})
    eventually(lambda: spool.range(RESPONSES, 0).first == 6)
    assert follower.look().missed == 1
    follower.close()
    spool.close()


def test_a_log_that_is_made_anew_is_followed_from_its_beginning(tmp_path: Path) -> None:
    spool = open_log(tmp_path / "spool")
    spool.append(RESPONSES, b"key", b"old").result(10)
    follower = SpoolFollower(tmp_path / "spool")
    spool.close()
    (tmp_path / "spool").rename(tmp_path / "gone")
    spool = open_log(tmp_path / "spool")
    spool.append(RESPONSES, b"key", b"new").result(10)
    assert [record.payload for record in follower.look().records] == [b"new"]
    follower.close()
    spool.close()


def test_a_topic_that_is_made_anew_and_a_partition_that_is_added_are_followed_from_their_beginning(
    broker: LocalBroker,
) -> None:
    cluster = cluster_on(broker)
    ours = [cluster.topic(topic) for topic in (RESPONSES, FEEDBACK)]

    def produce(topic: str, *payloads: bytes) -> None:
        producer = Producer(cluster)
        assert producer.send([Message(cluster.topic(topic), each, each) for each in payloads]) == [None] * len(payloads)
        producer.close()

    produce(RESPONSES, *[b"before"] * 3)
    follower, admin = KafkaFollower(cluster), cluster.admin()
    produce(RESPONSES, b"old")
    assert take(follower, 1) == [(RESPONSES, b"old")]
    admin.delete_topics(ours)
    eventually(lambda: not set(ours) & set(admin.list_topics()))
    assert follower.look().records == []
    create_topics(cluster, TopicRules(1, None, 1, 1))
    payloads = [b"new %d" % number for number in range(9)]
    produce(RESPONSES, *payloads)
    assert take(follower, 9) == [(RESPONSES, payload) for payload in payloads]
    admin.create_partitions({ours[1]: 4})
    votes = [b"vote %d" % number for number in range(40)]
    eventually(lambda: {topic.partitions for topic in describe_topics(cluster) if topic.name == ours[1]} == {4})
    produce(FEEDBACK, *votes)
    assert sorted(take(follower, 40)) == sorted((FEEDBACK, vote) for vote in votes)
    assert follower.look().records == []
    admin.close()
    follower.close()


def test_where_no_log_is_nothing_can_be_followed(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        SpoolFollower(tmp_path)
