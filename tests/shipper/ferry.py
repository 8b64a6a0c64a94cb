"""A spool, a shipper and a lake with Kafka between them, as separate hands that a test moves."""

import threading
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import Message

from attune.aggregator.ingest import Ingest
from attune.errors import AttuneError
from attune.eventlog import FEEDBACK, RESPONSES, TOPICS, SqliteLog, SqliteLogReader
from attune.eventlog.cluster import Cluster
from attune.eventlog.kafka import KafkaLogReader
from attune.eventlog.refused import RefusedRecords
from attune.lake.audit import count_ids
from attune.lake.lake import Lake
from attune.shipper.shipper import Shipper
from attune.v1 import event_pb2
from tests.eventlog.waiting import eventually


class Ferry:
    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder = folder
        self.cluster = cluster
        self.spool = SqliteLog(folder / "spool", max_bytes=1 << 28, readers=("shipper",), feedback_share=0.1)
        self.refused = RefusedRecords(folder / "spool")
        self.acknowledged: list[str] = []
        self._closing: list[Callable[[], None]] = [self.spool.close]

    def append(self, *events: Message | bytes, topic: str = RESPONSES) -> None:
        """Returns when they are acknowledged."""
        futures = []
        for event in events:
            payload = event if isinstance(event, bytes) else event.SerializeToString()
            to = FEEDBACK if isinstance(event, event_pb2.FeedbackEvent) else topic
            key = b"" if isinstance(event, bytes) else event.conversation_id.encode()  # type: ignore[attr-defined]
            futures.append((self.spool.append(to, key, payload), event))
        for future, event in futures:
            future.result(10)
            if not isinstance(event, bytes):
                self.acknowledged.append(event.header.event_id)  # type: ignore[attr-defined]

    def shipper(self, batch_records: int = 100, reached: Callable[[str], None] = lambda _: None) -> Shipper:
        reader = SqliteLogReader(self.folder / "spool")
        shipper = Shipper(reader, self.cluster, self.refused, batch_records=batch_records, reached=reached)
        self._closing += [shipper.close, reader.close]
        return shipper

    def ship_all(self, seconds: float = 30, batch_records: int = 100) -> None:
        """Until the shipper has everything behind it, whatever Kafka does in between."""
        shipper = self.shipper(batch_records)
        eventually(lambda: not ship(shipper) and self.is_shipped(), seconds)

    def is_shipped(self) -> bool:
        positions = self.spool.positions("shipper")
        return all(positions.get((topic, 0), 0) == self.spool.range(topic, 0).next for topic in TOPICS)

    def reader(self) -> KafkaLogReader:
        reader = KafkaLogReader(self.cluster, "aggregator", session_seconds=6)
        self._closing.append(reader.close)
        return reader

    def ingests(self, reader: KafkaLogReader, batch_records: int = 200) -> list[Ingest]:
        lake = Lake(self.folder / "lake")
        return [Ingest(reader, lake, topic, batch_records=batch_records) for topic in TOPICS]

    def ingest_all(self, seconds: float = 30) -> None:
        """Until the lake has what was acknowledged."""
        reader = self.reader()
        ingests = self.ingests(reader)
        eventually(
            lambda: sum(poll(ingest) for ingest in ingests) == 0 and len(self.ids()) >= len(self.acknowledged), seconds
        )
        for ingest in ingests:  # what came twice would come now
            ingest.poll()
        reader.close()

    def ids(self) -> list[str]:
        """The event ids in the lake, as ingested, repeated ones repeated."""
        counts = [count_ids(self.folder / "lake", table, "event_id") for table in ("responses", "feedback")]
        return sorted(each for count in counts for each in count.elements())

    def close(self) -> None:
        for close in reversed(self._closing):
            close()


class Member(threading.Thread):
    """One aggregator, in a thread of its own: members of a group wait for one another."""

    def __init__(self, ferry: Ferry, *, ingesting: bool = True) -> None:
        super().__init__()
        self._ferry = ferry
        self._ingesting, self._leaving = threading.Event(), threading.Event()
        self.partitions: set[tuple[str, int]] = set()
        if ingesting:
            self.ingest()
        self.start()

    def run(self) -> None:
        reader = KafkaLogReader(self._ferry.cluster, "aggregator", session_seconds=6)
        ingests = self._ferry.ingests(reader)
        while not self._leaving.wait(0.01):
            self.partitions = held_by(reader)
            if self._ingesting.is_set():
                for ingest in ingests:
                    poll(ingest)
        reader.close()
        self.partitions = set()

    def ingest(self) -> None:
        """From now on; until then it only holds its partitions."""
        self._ingesting.set()

    def leave(self) -> None:
        self._leaving.set()
        self.join()


def held_by(reader: KafkaLogReader) -> set[tuple[str, int]]:
    return {(topic, partition) for topic in TOPICS for partition in reader.ranges(topic)}


def ship(shipper: Shipper) -> int:
    """One round; 1 when Kafka did not take it all."""
    try:
        return shipper.poll()
    except AttuneError:
        return 1


def poll(ingest: Ingest) -> int:
    try:
        return ingest.poll()
    except AttuneError:
        return 1
