"""Spool to Kafka to lake: nothing acknowledged is lost, each event is in the lake once."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from prometheus_client import REGISTRY

from attune.errors import AttuneError
from attune.eventlog import FEEDBACK, RESPONSES
from attune.eventlog.broker import LocalBroker, fetch_jars
from attune.eventlog.cluster import Client, Cluster
from attune.eventlog.producer import Message, Producer
from tests.brokers import cluster_on
from tests.eventlog.waiting import eventually
from tests.lake.events import response_event, thumb_event
from tests.shipper.ferry import Ferry, ship


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


def in_kafka(ferry: Ferry, topic: str) -> list[Any]:
    """Every record of the topic, partition by partition."""
    consumer = KafkaConsumer(bootstrap_servers=list(ferry.cluster.servers))
    name = ferry.cluster.topic(topic)
    places = [TopicPartition(name, partition) for partition in consumer.partitions_for_topic(name)]
    consumer.assign(places)
    consumer.seek_to_beginning()
    missing = sum(consumer.end_offsets(places).values())
    records: list[Any] = []
    while len(records) < missing:
        records += [record for batch in consumer.poll(1000).values() for record in batch]
    consumer.close()
    return records


def test_events_reach_the_lake_through_kafka(ferry: Ferry) -> None:
    ferry.append(*[response_event(n) for n in range(250)], *[thumb_event(n, n) for n in range(50)])
    ferry.ship_all()
    eventually(lambda: ferry.spool.range(RESPONSES, 0).first == 250)
    ferry.ingest_all()
    assert ferry.ids() == sorted(ferry.acknowledged)


def test_a_conversation_stays_in_order_and_each_record_says_what_it_is(ferry: Ferry) -> None:
    events = [response_event(n, conversation_id=f"c-{n % 7}") for n in range(210)]
    ferry.append(*events)
    ferry.ship_all(batch_records=50)
    records = in_kafka(ferry, RESPONSES)
    assert len({record.partition for record in records}) > 1
    for number in range(7):
        key = f"c-{number}".encode()
        ids = [dict(record.headers)["event_id"].decode() for record in records if record.key == key]
        assert ids == [event.header.event_id for event in events if event.conversation_id == key.decode()]
    assert {dict(record.headers)["schema_version"] for record in records} == {b"1"}
    assert {record.value for record in records} == {event.SerializeToString() for event in events}


def test_bytes_that_are_no_event_are_shipped_as_they_are(ferry: Ferry) -> None:
    ferry.append(b"\xff\xff", topic=FEEDBACK)
    ferry.ship_all()
    (record,) = in_kafka(ferry, FEEDBACK)
    assert (record.value, record.headers) == (b"\xff\xff", [])


def test_a_record_that_kafka_refuses_for_good_is_set_aside_and_the_others_go_on(ferry: Ferry) -> None:
    before = metric("attune_shipper_refused_total", topic=RESPONSES)
    huge = response_event(2, text="x" * (2 << 20)).SerializeToString()
    ferry.append(response_event(1), huge, response_event(3), thumb_event(1, 1))
    ferry.ship_all()
    ferry.ingest_all()
    assert ferry.ids() == sorted(ferry.acknowledged)
    (kept,) = ferry.refused.read()
    assert (kept.record.payload, kept.record.offset, kept.log_id) == (huge, 1, ferry.spool.log_id(RESPONSES))
    assert kept.reason == "Kafka refused the record: MessageSizeTooLargeError"
    assert metric("attune_shipper_refused_total", topic=RESPONSES) == before + 1


def test_a_record_that_cannot_be_set_aside_holds_up_what_is_behind_it_and_nothing_is_lost(ferry: Ferry) -> None:
    huge = response_event(2, text="x" * (2 << 20)).SerializeToString()
    ferry.append(response_event(1), huge, response_event(3), topic=RESPONSES)
    in_the_way = ferry.folder / "spool" / "refused.sqlite"
    in_the_way.mkdir()
    shipper = ferry.shipper()
    for _ in range(2):
        with pytest.raises(AttuneError, match=r"refused\.sqlite cannot be used now"):
            shipper.poll()
        assert ferry.spool.positions("shipper") == {(RESPONSES, 0): 1}
    in_the_way.rmdir()
    ferry.ship_all()
    ferry.ingest_all()
    assert ferry.ids() == sorted(ferry.acknowledged)
    assert len(list(ferry.refused.read())) == 1


STEPS = ["read", "sent", "set aside", "positioned"]

_KILLED_AT = """
import os, signal, sys
from pathlib import Path
from attune.eventlog import SqliteLogReader
from attune.eventlog.cluster import Cluster
from attune.eventlog.refused import RefusedRecords
from attune.shipper.shipper import Shipper
spool, step, server, prefix = Path(sys.argv[1]), *sys.argv[2:]
def reached(name):
    if name == step:
        os.kill(os.getpid(), signal.SIGKILL)
cluster = Cluster((server,), prefix, 5, 10, 1 << 20)
shipper = Shipper(SqliteLogReader(spool), cluster, RefusedRecords(spool), batch_records=40, reached=reached)
while shipper.poll():
    pass
"""


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_nothing_is_lost_and_nothing_comes_in_twice(ferry: Ferry, step: str) -> None:
    huge = response_event(0, text="x" * (2 << 20)).SerializeToString()
    ferry.append(*[response_event(n) for n in range(30)], huge, *[response_event(n) for n in range(30, 60)])
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            _KILLED_AT,
            str(ferry.folder / "spool"),
            step,
            *ferry.cluster.servers,
            ferry.cluster.topic_prefix,
        ],
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    ferry.ship_all(batch_records=17)
    ferry.ingest_all()
    assert ferry.ids() == sorted(ferry.acknowledged)
    assert [kept.record.payload for kept in ferry.refused.read()] == [huge]


def start(service: str, ferry: Ferry, **settings: str) -> "subprocess.Popen[bytes]":
    given = {
        "ATTUNE_DATA": str(ferry.folder),
        "ATTUNE_KAFKA__SERVERS": ",".join(ferry.cluster.servers),
        "ATTUNE_KAFKA__TOPIC_PREFIX": ferry.cluster.topic_prefix,
        "ATTUNE_AGGREGATOR__GRPC_PORT": "0",
        **{f"ATTUNE_{name}__METRICS_PORT": "0" for name in ("SHIPPER", "AGGREGATOR")},
        **settings,
    }
    return subprocess.Popen([sys.executable, "-m", f"attune.{service}.main"], env={**os.environ, **given})


def test_the_process_goes_on_where_it_was_killed_and_stops_in_order(ferry: Ferry) -> None:
    process = start("shipper", ferry)
    try:
        ferry.append(*[response_event(n) for n in range(100)])
        eventually(ferry.is_shipped, 20)
        process.kill()
        process.wait()
        ferry.append(*[response_event(n) for n in range(100, 200)])
        process = start("shipper", ferry)
        eventually(ferry.is_shipped, 20)
        process.send_signal(signal.SIGSTOP)
        ferry.append(*[response_event(n) for n in range(200, 300)])
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        assert process.wait(20) == 0
        assert ferry.is_shipped()
    finally:
        process.kill()
        process.wait()
    ferry.ingest_all()
    assert ferry.ids() == sorted(ferry.acknowledged)


def test_services_stop_in_order_and_in_time_while_the_broker_is_frozen(broker: LocalBroker, ferry: Ferry) -> None:
    """Longer than a supervisor waits would be the 60 s that a record has."""
    patient = {"ATTUNE_KAFKA__REQUEST_SECONDS": "3", "ATTUNE_KAFKA__DELIVERY_SECONDS": "60"}
    services = [start(name, ferry, **patient) for name in ("shipper", "aggregator")]
    try:
        ferry.append(response_event(1))
        eventually(lambda: len(ferry.ids()) == 1, 30)
        os.kill(broker.pid, signal.SIGSTOP)
        ferry.append(response_event(2))
        for service in services:
            service.terminate()
        assert [service.wait(18) for service in services] == [0, 0]
    finally:
        os.kill(broker.pid, signal.SIGCONT)
        for service in services:
            service.kill()
            service.wait()
    ferry.ship_all()
    ferry.ingest_all()
    assert ferry.ids() == sorted(ferry.acknowledged)


def test_kafka_that_is_not_there_costs_nothing_but_time(broker: LocalBroker, tmp_path: Path) -> None:
    cluster = cluster_on(broker)
    ferry = Ferry(tmp_path, replace(cluster, servers=("127.0.0.1:9",), request_seconds=0.3))
    try:
        shipper = ferry.shipper()
        ferry.append(*[response_event(n) for n in range(10)])
        with pytest.raises(AttuneError, match="Kafka did not answer in time"):
            shipper.poll()
        ferry.append(response_event(10))
        assert ferry.spool.positions("shipper") == {}
        ferry.cluster = cluster
        ferry.ship_all()
        ferry.ingest_all()
        assert ferry.ids() == sorted(ferry.acknowledged)
    finally:
        ferry.close()


class Load:
    """Somebody who chats all the time; what is acknowledged is noted."""

    def __init__(self, ferry: Ferry) -> None:
        self._ferry = ferry
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.slowest_seconds = 0.0

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._ending.wait(0.01):
            self._ferry.append(response_event(number), thumb_event(number, number))
            number += 1


@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_a_broker_that_is_lost_under_load_loses_nothing(broker: LocalBroker, ferry: Ferry, how: str) -> None:
    """Lost for longer than every time-out: 3 s for a record, 2 s for a request, 6 s for a member of the group."""
    reader = ferry.reader()
    ingests = ferry.ingests(reader)
    ending = threading.Event()

    def carry_on() -> None:
        shipper = ferry.shipper()
        while not ending.wait(0.01):
            ship(shipper)

    shipping = threading.Thread(target=carry_on)
    with Load(ferry):
        shipping.start()
        try:
            eventually(lambda: sum(ingest.poll() for ingest in ingests) and len(ferry.ids()) > 50, 20)
            if how == "frozen":
                os.kill(broker.pid, signal.SIGSTOP)
            else:
                broker.kill()
            said, failures = len(ferry.acknowledged), 0
            for ingest in ingests:
                try:
                    ingest.poll()
                except AttuneError:
                    failures += 1
            assert failures
            eventually(lambda: metric("attune_shipper_failures_total", topic=RESPONSES), 20)
            eventually(lambda: len(ferry.acknowledged) > said + 400, 20)
        finally:
            if how == "frozen":
                os.kill(broker.pid, signal.SIGCONT)
            else:
                broker.start(fetch_jars())
        said = len(ferry.acknowledged)
        eventually(lambda: len(ferry.acknowledged) > said + 50, 20)
    try:
        eventually(ferry.is_shipped, 30)
    finally:
        ending.set()
        shipping.join()

    def is_all_there() -> bool:
        for ingest in ingests:
            try:
                ingest.poll()
            except AttuneError:
                return False
        return len(ferry.ids()) >= len(ferry.acknowledged)

    eventually(is_all_there, 40)
    for ingest in ingests:
        ingest.poll()
    assert ferry.ids() == sorted(ferry.acknowledged)


class WithIdempotence(Cluster):
    """Its producers hang for good once the broker was frozen for longer than their time limit."""

    def make(self, kind: type[Client], **options: Any) -> Client:  # type: ignore[override]
        return super().make(kind, **{**options, **({"enable_idempotence": True} if "acks" in options else {})})


def test_a_producer_that_hangs_is_replaced_and_leaves_nothing_behind(broker: LocalBroker) -> None:
    plain = cluster_on(broker)
    cluster = WithIdempotence(**{**vars(plain), "request_seconds": 1, "delivery_seconds": 2})
    producer = Producer(cluster)
    message = Message(cluster.topic(RESPONSES), b"key", b"payload")
    assert producer.send([message]) == [None]
    before, threads = metric("attune_producers_replaced_total"), threading.active_count()
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        eventually(lambda: producer.send([message] * 20) and metric("attune_producers_replaced_total") > before, 30)
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    eventually(lambda: producer.send([message]) == [None], 30)
    eventually(lambda: threading.active_count() <= threads)
    producer.close()
