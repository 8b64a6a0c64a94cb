"""A person is forgotten: their words are in every store before, and nowhere after; everybody else's stay."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from deltalake import DeltaTable
from pyarrow import fs

from attune.erasures import CERTIFICATE, STATE, digest_of
from attune.errors import NotFound, Unavailable
from attune.eventlog.refused import RefusedRecords
from attune.lake.dataset import list_datasets, open_dataset
from attune.lake.place import ObjectStore, files_of
from attune.v1 import event_pb2
from tests.aggregator.forgotten import ASKED_UNIX_MS, JANE, JOHN, TOKENS, WORDS, Ring
from tests.aggregator.trace import traces, traces_in_store
from tests.lake.events import response_event, thumb_event
from tests.stores import Minio

STORES = {"spool", "idempotency.sqlite", "lake", "datasets", "registry"}


class Killed(BaseException):
    """As sudden as kill -9: nothing catches it."""


@pytest_asyncio.fixture
async def ring(tmp_path: Path) -> AsyncIterator[Ring]:
    made = Ring(tmp_path)
    await made.fill()
    yield made
    made.close()


def found(ring: Ring) -> dict[str, set[str]]:
    return {store.split("-wal")[0]: files for store, files in traces(ring.folder, WORDS, TOKENS).items()}


async def test_their_words_are_everywhere_before_and_nowhere_after(ring: Ring) -> None:
    assert found(ring).keys() >= STORES
    assert any(JANE in name for name in traces(ring.folder, [JANE], TOKENS)["receipts.sqlite"]) is False
    assert "receipts.sqlite" in {store.split("-wal")[0] for store in traces(ring.folder, [JANE], TOKENS)}

    erasure_id = await ring.forget()

    assert ring.erasures.read(erasure_id, STATE) is None, "it is done"
    assert found(ring) == {}
    assert traces(ring.folder, [JANE], TOKENS) == {}


async def test_everybody_elses_things_stay(ring: Ring) -> None:
    before, others = ring.ids(), 19
    await ring.forget()
    after = ring.ids()
    gone = {topic: sorted(set(before[topic]) - set(after[topic])) for topic in before}
    assert gone == {
        "attune.responses": ["response-0", "response-900101", "response-900102"],
        "attune.feedback": ["feedback-0", "feedback-900100"],
    }
    assert [len(names) for names in after.values()] == [others, others]
    kept = ring.idempotency.erase(lambda _name, _answer: True)
    assert kept == others
    assert [one.record.offset for one in RefusedRecords(ring.folder / "spool").read()] == [401]
    (dataset,) = list_datasets(ring.folder / "datasets")
    assert sorted(dataset.table(["response_id"])["response_id"].to_pylist()) == sorted(
        [f"r-{JOHN}", *(f"r-user-{number}" for number in range(2, 20))]
    )


async def test_no_earlier_version_of_a_table_can_be_read(ring: Ring) -> None:
    await ring.forget()
    for table in ("responses", "feedback"):
        folder = ring.folder / "lake" / table
        newest = DeltaTable(folder).version()
        for version in range(newest):
            try:
                rows = DeltaTable(folder, version=version).to_pyarrow_table(columns=["end_user"])
            except (OSError, Exception):  # noqa: BLE001 - however it is refused
                continue
            assert JANE not in rows["end_user"].to_pylist()


async def test_the_old_dataset_is_unreadable_and_policies_of_it_go_once_they_have_no_traffic(ring: Ring) -> None:
    (old,) = list_datasets(ring.folder / "datasets")
    ring.serve("p-000001")
    child = ring.publish("d-of-somebody-else", parent="p-000001")
    erasure_id = await ring.forget(turns=3)

    state = ring.erasures.read(erasure_id, STATE)
    assert state is not None
    assert state["policies"] == ["p-000001", child]
    assert state["waiting"] == "policies: p-000001 to be retrained and withdrawn"
    with pytest.raises(NotFound, match="its rows were erased"):
        open_dataset(old.folder)
    with pytest.raises(NotFound):
        ring.desk.registry.read(child)

    (new,) = list_datasets(ring.folder / "datasets")
    ring.serve(ring.publish(new.manifest.dataset_id))
    for _ in range(3):
        await ring.turn()
    assert ring.desk.registry.ids() == ("p-000003",)
    assert ring.erasures.read(erasure_id, CERTIFICATE) is not None


async def test_the_certificate_says_what_went_where_and_names_nobody(ring: Ring) -> None:
    erasure_id = await ring.forget()
    certificate = ring.erasures.read(erasure_id, CERTIFICATE)
    assert certificate is not None
    assert JANE not in json.dumps(certificate)
    checksum = certificate.pop("sha256")
    assert checksum == hashlib.sha256(json.dumps(certificate, sort_keys=True).encode()).hexdigest()
    assert certificate["person_sha256"] == digest_of("default", JANE)
    assert certificate["policies_withdrawn"] == ["p-000001"]
    removed = certificate["removed"]
    assert removed["lake"]["rows"] == 5
    assert removed["lake"]["of others about them"] == 3
    assert removed["dead letters"]["rows"] == 1
    assert removed["datasets"]["datasets"] == 1
    assert removed["inference"] == {"records": 7, "answers under request ids": 1}
    assert any("backups" in one for one in certificate["remains"])


async def test_the_certificate_says_until_when_kafkas_topics_have_something(ring: Ring) -> None:
    ring.eraser.now_unix_ms = lambda: 1_800_000_000_000
    ring.eraser.topics = lambda: {"attune.responses": 86_400_000, "attune.feedback": None}
    certificate = ring.erasures.read(await ring.forget(), CERTIFICATE)
    assert certificate is not None
    assert certificate["topics"] == {
        "attune.responses": {"kept_days": 1, "nothing_left_after": "2027-01-16T08:00:00+00:00"},
        "attune.feedback": {"kept_days": None, "nothing_left_after": None},
    }
    assert certificate["remains"][-2:] == [
        "records in Kafka's topic attune.responses, until 2027-01-16T08:00:00+00:00",
        "records in Kafka's topic attune.feedback, which keeps them for ever",
    ]


async def test_while_kafka_does_not_say_it_there_is_no_certificate(ring: Ring) -> None:
    def silent() -> dict[str, int | None]:
        raise Unavailable("Kafka did not answer in time")

    ring.eraser.topics = silent
    erasure_id = await ring.forget()
    state = ring.erasures.read(erasure_id, STATE)
    assert state is not None
    assert state["waiting"] == "certificate: Kafka did not answer in time"
    ring.eraser.topics = dict
    await ring.turn()
    assert ring.erasures.read(erasure_id, CERTIFICATE) is not None


async def test_what_comes_late_is_dropped_and_what_they_say_afterwards_is_kept(ring: Ring) -> None:
    await ring.forget()
    late = response_event(200, end_user=JANE, text=WORDS[0])
    new = response_event(201, end_user=JANE, text="again")
    new.header.created_unix_ms = ASKED_UNIX_MS + 1
    ring.plant.append(late, new, thumb_event(202, 200, end_user=JOHN))
    ring.ingest()
    assert "response-200" not in ring.plant.ids("responses")
    assert "response-201" in ring.plant.ids("responses")
    assert "feedback-202" in ring.plant.ids("feedback")


async def test_a_person_of_whom_nothing_is_there_gets_a_certificate_too(ring: Ring) -> None:
    before = ring.ids()
    erasure_id = await ring.forget(person="f" * 32)
    certificate = ring.erasures.read(erasure_id, CERTIFICATE)
    assert certificate is not None
    assert certificate["removed"]["lake"]["rows"] == 0
    assert ring.ids() == before
    assert len(list_datasets(ring.folder / "datasets")) == 1


async def test_another_tenants_person_of_the_same_name_stays(ring: Ring) -> None:
    header = event_pb2.EventHeader(event_id="acme-1", tenant="acme")
    ring.plant.append(response_event(300, end_user=JANE, header=header))
    await ring.forget()
    assert "acme-1" in ring.plant.ids("responses")


@pytest.fixture
def store(minio: Minio) -> ObjectStore:
    place = minio.place()
    assert isinstance(place, ObjectStore)
    return place


@pytest_asyncio.fixture
async def ring_on_store(tmp_path: Path, store: ObjectStore) -> AsyncIterator[Ring]:
    made = Ring(tmp_path, place=store)
    await made.fill()
    yield made
    made.close()


async def test_in_an_object_store_nothing_is_left_either_and_others_rows_stay(
    ring_on_store: Ring, store: ObjectStore, minio: Minio
) -> None:
    ring, place = ring_on_store, store
    before = ring.ids()
    assert traces_in_store(place, WORDS, TOKENS).keys() == {"responses", "feedback", "dead-letter"}
    left = write_unnamed_file(place)

    erasure_id = await ring.forget(turns=3)
    state = ring.erasures.read(erasure_id, STATE)
    assert state is not None
    assert state["waiting"] == "lake: 1 files of responses are perhaps still being written"
    files_of(place / "responses").delete_file(left)
    await ring.forget()

    assert ring.erasures.read(erasure_id, CERTIFICATE) is not None
    assert found(ring) == {}
    assert traces_in_store(place, [*WORDS, JANE], TOKENS) == {}
    assert versions_on_disk(place, minio) == names_in(place), "nothing is kept under an object's name or beside it"
    after = ring.ids()
    gone = {topic: len(before[topic]) - len(after[topic]) for topic in before}
    assert gone == {"attune.responses": 3, "attune.feedback": 2}
    assert [len(set(names)) for names in after.values()] == [19, 19]


def write_unnamed_file(place: ObjectStore) -> str:
    """What a writer leaves that dies before its commit, with a row of Jane's."""
    row = pa.table({"event_id": ["response-0"], "text": [WORDS[0]]})
    pq.write_table(row, "day=2026-01-01/part-left.parquet", filesystem=files_of(place / "responses"))
    return "day=2026-01-01/part-left.parquet"


def names_in(place: ObjectStore) -> list[str]:
    listed = files_of(place).get_file_info(fs.FileSelector("", recursive=True))
    return sorted(file.path for file in listed if file.type == fs.FileType.File)


def versions_on_disk(place: ObjectStore, minio: Minio) -> list[str]:
    """MinIO keeps an object's versions in a folder of its name, with one list of them."""
    folder = minio.folder / place.url.removeprefix("s3://")
    return sorted(file.parent.relative_to(folder).as_posix() for file in folder.rglob("xl.meta"))


STEPS = (
    "event log", "found", "responses deleted", "feedback deleted", "lake", "dead letters", "inference", "built anew",
    "dataset erased", "datasets", "receipts", "policies", "search", "certificate",
)  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_any_step_and_started_again_it_ends_right(tmp_path: Path, step: str) -> None:
    killed = []

    def reached(name: str) -> None:
        if name == step and not killed:
            killed.append(name)
            raise Killed

    ring = Ring(tmp_path, reached)
    await ring.fill(people=6)
    others = {topic: len(names) for topic, names in ring.ids().items()}
    with pytest.raises(Killed):
        await ring.forget()
    ring.close()

    ring = Ring(tmp_path)
    for _ in range(5):
        await ring.turn()
    assert not ring.erasures.running()
    assert len(ring.erasures.ids()) == 1
    assert ring.erasures.read(ring.erasures.ids()[0], CERTIFICATE) is not None
    assert found(ring) == {}
    assert {topic: len(names) for topic, names in ring.ids().items()} == {
        "attune.responses": others["attune.responses"] - 3,
        "attune.feedback": others["attune.feedback"] - 2,
    }
    assert len(list_datasets(ring.folder / "datasets")) == 1
    ring.close()
