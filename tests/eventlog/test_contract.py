"""What every event log must do for whoever reads it, whatever it is made of."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from kafka import KafkaAdminClient

from attune.errors import InvalidInput, NotFound
from attune.eventlog import FEEDBACK, RESPONSES, EventReader, Record, SqliteLog, SqliteLogReader
from attune.eventlog.broker import LocalBroker
from attune.eventlog.kafka import KafkaLogReader
from attune.eventlog.producer import Message, Producer
from attune.eventlog.topics import TopicRules, create_topics
from tests.brokers import cluster_on
from tests.eventlog.waiting import eventually

MIB = 1 << 20


class Log(Protocol):
    """A log of one partition, with a side to append at and any number of readers."""

    def append(self, topic: str, *payloads: bytes) -> None:
        """Returns when they are acknowledged."""

    def open_reader(self) -> EventReader: ...

    def make_anew(self) -> None:
        """The log is gone, and another stands in its place."""

    def close(self) -> None: ...


class Spool:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = self._open()
        self._readers: list[EventReader] = []

    def append(self, topic: str, *payloads: bytes) -> None:
        for future in [self._log.append(topic, b"key", payload) for payload in payloads]:
            future.result(10)

    def open_reader(self) -> EventReader:
        self._readers.append(SqliteLogReader(self._folder))
        return self._readers[-1]

    def make_anew(self) -> None:
        self._log.close()
        self._folder.rename(self._folder.with_name(uuid.uuid4().hex))
        self._log = self._open()

    def close(self) -> None:
        for reader in (*self._readers, self._log):
            reader.close()

    def _open(self) -> SqliteLog:
        return SqliteLog(self._folder, max_bytes=64 * MIB, readers=("aggregator",), feedback_share=0.25)


class Kafka:
    def __init__(self, broker: LocalBroker) -> None:
        self._cluster = cluster_on(broker)
        self._producer = Producer(self._cluster)
        self._readers: list[EventReader] = []

    def append(self, topic: str, *payloads: bytes) -> None:
        messages = [Message(self._cluster.topic(topic), b"key", payload) for payload in payloads]
        assert self._producer.send(messages) == [None] * len(messages)

    def open_reader(self) -> EventReader:
        for reader in self._readers:  # or they would share the one partition
            reader.close()
        reader = KafkaLogReader(self._cluster, "aggregator")
        self._readers = [reader]
        eventually(lambda: reader.ranges(RESPONSES) and reader.ranges(FEEDBACK))
        return reader

    def make_anew(self) -> None:
        admin = KafkaAdminClient(bootstrap_servers=list(self._cluster.servers))
        ours = [self._cluster.topic(RESPONSES), self._cluster.topic(FEEDBACK)]
        admin.delete_topics(ours)
        eventually(lambda: not set(ours) & set(admin.list_topics()))
        admin.close()
        create_topics(self._cluster, TopicRules(1, None, 1, 1))
        self._producer.close()
        self._producer = Producer(self._cluster)

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self._producer.close()


@pytest.fixture(params=["sqlite", "kafka"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    opened: Log = Spool(tmp_path / "spool") if request.param == "sqlite" else Kafka(request.getfixturevalue("broker"))
    yield opened
    opened.close()


def payloads(records: list[Record]) -> list[bytes]:
    return [record.payload for record in records]


def test_records_come_back_in_order_under_dense_offsets(log: Log) -> None:
    log.append(RESPONSES, b"a", b"b", b"c")
    log.append(FEEDBACK, b"vote")
    records = log.open_reader().read(RESPONSES, 0, 1, 10, MIB)
    assert [(r.topic, r.partition, r.offset, r.key, r.payload) for r in records] == [
        (RESPONSES, 0, 1, b"key", b"b"),
        (RESPONSES, 0, 2, b"key", b"c"),
    ]


def test_a_read_is_bounded_by_records_and_bytes_but_gives_at_least_one(log: Log) -> None:
    log.append(RESPONSES, *[b"x" * 100] * 10)
    reader = log.open_reader()
    assert len(reader.read(RESPONSES, 0, 0, 3, MIB)) == 3
    assert len(reader.read(RESPONSES, 0, 0, 10, 450)) == 4
    assert len(reader.read(RESPONSES, 0, 4, 10, MIB)) == 6
    assert len(reader.read(RESPONSES, 0, 0, 10, 1)) == 1
    assert reader.read(RESPONSES, 0, 10, 10, MIB) == []


def test_a_reader_may_go_back_and_forth(log: Log) -> None:
    log.append(RESPONSES, *[b"%d" % number for number in range(3000)])
    reader = log.open_reader()
    for offset in (0, 1000, 2999, 500, 0, 2000):
        assert reader.read(RESPONSES, 0, offset, 1, MIB)[0].payload == b"%d" % offset
    whole: list[bytes] = []
    while read := payloads(reader.read(RESPONSES, 0, len(whole), 700, MIB)):
        whole += read
    assert whole == [b"%d" % number for number in range(3000)]


def test_another_reader_sees_what_was_acknowledged(log: Log) -> None:
    first = log.open_reader()
    log_ids = [first.log_id(topic) for topic in (RESPONSES, FEEDBACK)]
    log.append(RESPONSES, b"a")
    assert payloads(first.read(RESPONSES, 0, 0, 10, MIB)) == [b"a"]
    second = log.open_reader()
    assert [second.log_id(topic) for topic in (RESPONSES, FEEDBACK)] == log_ids
    assert list(second.ranges(RESPONSES)) == [0]
    assert payloads(second.read(RESPONSES, 0, 0, 10, MIB)) == [b"a"]


def test_a_range_says_what_is_held(log: Log) -> None:
    reader = log.open_reader()
    assert (reader.range(RESPONSES, 0).first, reader.range(RESPONSES, 0).next) == (0, 0)
    log.append(RESPONSES, b"a", b"b")
    assert reader.ranges(RESPONSES)[0] == reader.range(RESPONSES, 0)
    assert (reader.range(RESPONSES, 0).first, reader.range(RESPONSES, 0).next) == (0, 2)
    assert reader.ends(RESPONSES) == {0: 2}


def test_positions_are_kept_and_come_back_with_the_reader(log: Log) -> None:
    log.append(RESPONSES, *[b"x"] * 5)
    reader = log.open_reader()
    assert reader.positions("aggregator") == {}
    reader.commit("aggregator", {(RESPONSES, 0): 3})
    assert reader.positions("aggregator") == {(RESPONSES, 0): 3}
    assert log.open_reader().positions("aggregator") == {(RESPONSES, 0): 3}


def test_a_position_outside_the_log_is_refused(log: Log) -> None:
    reader = log.open_reader()
    with pytest.raises(InvalidInput, match=r"position 1 of attune\.responses/0 is outside 0 to 0"):
        reader.commit("aggregator", {(RESPONSES, 0): 1})
    with pytest.raises(InvalidInput, match="position -1"):
        reader.commit("aggregator", {(RESPONSES, 0): -1})
    with pytest.raises(InvalidInput):
        reader.commit("../aggregator", {})


def test_an_unknown_topic_or_partition_is_refused(log: Log) -> None:
    reader = log.open_reader()
    with pytest.raises(NotFound):
        reader.range("attune.other", 0)
    with pytest.raises(NotFound):
        reader.range(RESPONSES, 7)


def test_a_log_that_was_made_anew_is_another_log(log: Log) -> None:
    log.append(RESPONSES, *[b"old"] * 3)
    reader = log.open_reader()
    before = reader.log_id(RESPONSES)
    assert len(reader.read(RESPONSES, 0, 0, 10, MIB)) == 3
    log.make_anew()
    log.append(RESPONSES, *[b"new"] * 5)

    def is_another() -> bool:
        reader.ranges(RESPONSES)
        records = reader.read(RESPONSES, 0, 3, 10, MIB)
        assert not records or (payloads(records) == [b"new"] * 2 and reader.log_id(RESPONSES) != before)
        return bool(records)

    eventually(is_another, 20)
    assert payloads(reader.read(RESPONSES, 0, 0, 10, MIB)) == [b"new"] * 5


def test_a_reader_that_is_closed_can_be_opened_again(log: Log) -> None:
    open_reader: Callable[[], EventReader] = log.open_reader
    for number in range(3):
        reader = open_reader()
        log.append(RESPONSES, b"%d" % number)
        assert payloads(reader.read(RESPONSES, 0, number, 10, MIB)) == [b"%d" % number]
        reader.close()
