"""A person is forgotten while several aggregators share the log."""

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from attune.aggregator.build import Builder, BuildRules
from attune.aggregator.ingest import Ingest
from attune.aggregator.privacy.eraser import Eraser
from attune.aggregator.receipt_index import ReceiptIndex
from attune.erasures import FOUND, STATE, Erasures
from attune.eventlog import FEEDBACK, TOPICS
from attune.eventlog.kafka import KafkaLogReader
from attune.eventlog.topics import ALL_TOPICS, forgotten_after_ms
from attune.keys import PolicySigner
from attune.lake.lake import Lake
from attune.registry.policies import Registry
from tests.eventlog.waiting import eventually
from tests.lake.events import NOW_UNIX_MS, response_event, thumb_event
from tests.shipper.ferry import Ferry, Member, held_by, poll

RECORDS = 60


def eraser_of(ferry: Ferry, reader: KafkaLogReader, lake: Lake) -> Eraser:
    folder = ferry.folder
    registry = Registry(folder / "registry", PolicySigner.load_or_create(folder / "keys").verifier())
    return Eraser(
        folder,
        Erasures(folder / "erasures"),
        reader,
        lake,
        Builder(folder / "datasets", BuildRules(1, 3650, 0.2), b"k" * 32),
        registry,
        ReceiptIndex(folder, folder / "lake", registry),
        now_unix_ms=lambda: NOW_UNIX_MS + 1,
    )


def test_it_is_known_when_nothing_is_left_in_each_topic(ferry: Ferry) -> None:
    """Segments go as a whole, and brokers take their time: a tenth of the retention, and an hour."""
    name, cluster = ferry.cluster.topic(FEEDBACK), ferry.cluster
    hour_ms = 3_600_000
    expected = {cluster.topic(topic): pytest.approx(27.4 * hour_ms, rel=0.01) for topic in ALL_TOPICS}
    assert forgotten_after_ms(cluster) == expected
    admin = cluster.admin()
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, {"retention.ms": "-1"})])
    admin.close()
    eventually(lambda: forgotten_after_ms(cluster) == expected | {name: None}, 10)


def test_an_erasure_waits_for_what_other_aggregators_are_still_to_bring(ferry: Ferry) -> None:
    reader, lake, other = ferry.reader(), Lake(ferry.folder / "lake"), Member(ferry, ingesting=False)
    ingests = [Ingest(reader, lake, topic, batch_records=10) for topic in TOPICS]

    def ingest() -> int:
        return sum(poll(each) for each in ingests)

    def are_shared() -> bool:
        ours = held_by(reader)
        return (
            bool(ours and other.partitions) and len(ours) + len(other.partitions) == len(ours | other.partitions) == 6
        )

    try:
        eventually(are_shared, 40)
        for number in range(RECORDS):
            jane = {"end_user": "jane", "conversation_id": f"c-{number}"}
            ferry.append(response_event(number, **jane), thumb_event(number, number, **jane))
        ferry.ship_all()
        eventually(lambda: not ingest() and ferry.ids(), 40)
        taken = len(ferry.ids())
        assert 0 < taken < 2 * RECORDS, "the other one's are not in the lake yet"

        eraser = eraser_of(ferry, reader, lake)
        erasure_id = eraser.erasures.ask("default", "jane", NOW_UNIX_MS + RECORDS).erasure_id

        def waiting() -> str:
            ingest()
            eraser.turn()
            return str((eraser.erasures.read(erasure_id, STATE) or {}).get("waiting"))

        assert waiting() == "event log: what was said before is still on its way to the lake"
        assert (len(ferry.ids()), eraser.erasures.read(erasure_id, FOUND)) == (taken, None)
        other.ingest()
        eventually(lambda: waiting().startswith("inference: "), 40)
        found = eraser.erasures.read(erasure_id, FOUND)
        assert found is not None
        assert (len(found["response_events"]), len(found["feedback_ids"]), ferry.ids()) == (RECORDS, RECORDS, [])
    finally:
        other.leave()
