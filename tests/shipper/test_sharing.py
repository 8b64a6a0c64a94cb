"""Several aggregators on one log: partitions move between them while they read."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from attune.eventlog import FEEDBACK, RESPONSES
from attune.eventlog.broker import LocalBroker
from tests.brokers import cluster_on
from tests.eventlog.waiting import eventually
from tests.lake.events import response_event, thumb_event
from tests.shipper.ferry import Ferry, Member, ship

PARTITIONS = 6


def test_partitions_are_shared_and_move_while_they_are_read(broker: LocalBroker, tmp_path: Path) -> None:
    ferry = Ferry(tmp_path, cluster_on(broker, partitions=PARTITIONS))
    members = [Member(ferry)]
    shipper = ferry.shipper()
    number = 0

    def are_shared() -> bool:
        nonlocal number
        ferry.append(*[response_event(n) for n in range(number, number + 20)], thumb_event(number, number))
        number += 20
        ship(shipper)
        parts = [member.partitions for member in members]
        return sum(map(len, parts)) == 2 * PARTITIONS == len(set().union(*parts)) and all(parts)

    try:
        eventually(are_shared, 20)
        members.append(Member(ferry))
        eventually(are_shared, 40)
        members.pop(0).leave()
        eventually(are_shared, 40)
        ferry.ship_all()
        eventually(lambda: len(ferry.ids()) >= len(ferry.acknowledged), 40)
    finally:
        for member in members:
            member.leave()
        ferry.close()
    assert ferry.ids() == sorted(ferry.acknowledged)


_INGEST_FOREVER = """
import sys, time
from pathlib import Path
from attune.aggregator.ingest import Ingest
from attune.errors import AttuneError
from attune.eventlog import TOPICS
from attune.eventlog.cluster import Cluster
from attune.eventlog.kafka import KafkaLogReader
from attune.lake.lake import Lake
folder, server, prefix = Path(sys.argv[1]), *sys.argv[2:]
reader = KafkaLogReader(Cluster((server,), prefix, 2, 3, 1 << 20), "aggregator", session_seconds=2)
lake = Lake(folder / "lake")
ingests = [Ingest(reader, lake, topic, batch_records=20) for topic in TOPICS]
while True:
    for ingest in ingests:
        try:
            ingest.poll()
        except AttuneError as error:
            print(error, flush=True)
    time.sleep(0.01)
"""


def test_one_that_was_frozen_for_longer_than_its_session_brings_nothing_in_twice(ferry: Ferry) -> None:
    def aggregator() -> "subprocess.Popen[bytes]":
        arguments = [str(ferry.folder), *ferry.cluster.servers, ferry.cluster.topic_prefix]
        return subprocess.Popen([sys.executable, "-c", _INGEST_FOREVER, *arguments])

    def has_all() -> bool:
        return len(ferry.ids()) >= len(ferry.acknowledged)

    one, other = aggregator(), aggregator()
    try:
        for number in range(6):
            ferry.append(
                *[response_event(n) for n in range(number * 100, number * 100 + 100)], thumb_event(number, number)
            )
            ferry.ship_all()
            if number == 1:
                eventually(has_all, 40)
            if number == 2:
                os.kill(one.pid, signal.SIGSTOP)
            if number == 4:
                eventually(has_all, 40)
                os.kill(one.pid, signal.SIGCONT)
        eventually(has_all, 40)
        assert [one.poll(), other.poll()] == [None, None]
    finally:
        for each in (one, other):
            each.kill()
            each.wait()
    assert ferry.ids() == sorted(ferry.acknowledged)
    assert {topic: ferry.spool.positions("shipper")[topic, 0] for topic in (RESPONSES, FEEDBACK)} == {
        RESPONSES: 600,
        FEEDBACK: 6,
    }
