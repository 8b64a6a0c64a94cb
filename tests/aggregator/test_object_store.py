"""The lake on a real S3 server, and on a bad way to it."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from attune.aggregator.ingest import Ingest
from attune.cli.main import app
from attune.errors import AttuneError, DataLoss, FailedPrecondition, Unavailable
from attune.eventlog import FEEDBACK, RESPONSES
from attune.lake.audit import audit
from attune.lake.damage import check_undamaged, leave_out_damage
from attune.lake.dataset import list_datasets
from attune.lake.delta import Conflict, LakeTable
from attune.lake.lake import Lake
from attune.lake.place import ObjectStore
from attune.lake.spark import open_spark_snapshot
from attune.lake.upkeep import optimize
from tests.aggregator.plant import Plant, ids_of
from tests.eventlog.waiting import eventually
from tests.lake.events import response_event, thumb_event
from tests.stores import SECRET, USER, BadWay, Minio

SCHEMA = pa.schema([("number", pa.int64())])
SOURCE = "log/topic/0"


def rows(*numbers: int) -> pa.Table:
    return pa.table({"number": pa.array(numbers, pa.int64())})


@contextlib.contextmanager
def plant_on(folder: Path, minio: Minio, **changes: object) -> Iterator[Plant]:
    plant = Plant(folder, place=minio.place(**changes))
    try:
        yield plant
    finally:
        plant.close()


def test_of_two_writers_one_gets_the_batch_in(minio: Minio) -> None:
    place = minio.place()
    one, other = LakeTable(place / "t", SCHEMA, by_day=True), LakeTable(place / "t", SCHEMA, by_day=True)
    one.append(rows(1), SOURCE, 0, 1)
    with pytest.raises(Conflict):
        other.append(rows(1), SOURCE, 0, 1)
    other.reload()
    other.append(rows(2), SOURCE, 1, 2)
    one.reload()
    assert sorted(one.read(["number"])["number"].to_pylist()) == [1, 2]
    assert one.next_offset(SOURCE) == 2


def test_files_are_merged_and_of_two_that_merge_one_gives_way(minio: Minio) -> None:
    place = minio.place()
    one = LakeTable(place / "t", SCHEMA, by_day=True)
    for number in range(6):
        one.append(rows(number), SOURCE, number, number + 1)
    other = LakeTable(place / "t", SCHEMA, by_day=True)
    assert optimize(one).merged_files == 6
    with pytest.raises(Conflict):
        optimize(other)
    other.reload()
    assert sorted(other.read(["number"])["number"].to_pylist()) == list(range(6))
    assert len(other.files()) == 1


def test_datasets_are_built_from_it(tmp_path: Path, minio: Minio) -> None:
    with plant_on(tmp_path, minio) as plant:
        responses, thumbs = [response_event(n) for n in range(12)], [thumb_event(n, n) for n in range(10)]
        plant.append(*responses, *thumbs)
        plant.ingest_all(batch_records=4)
        assert plant.ids("responses") == ids_of(responses)
        assert plant.build().table().num_rows == 10
        assert not (tmp_path / "lake").exists()


def test_a_missing_object_is_named_and_can_be_left_out(tmp_path: Path, minio: Minio) -> None:
    table = LakeTable(minio.place() / "t", SCHEMA, by_day=True)
    for number in range(3):
        table.append(rows(number), SOURCE, number, number + 1)
    gone = table.files()[0]
    table.handle.to_pyarrow_dataset().filesystem.delete_file(gone)
    with pytest.raises(DataLoss, match=gone.split("/")[-1]):
        check_undamaged([(table.place, table.handle)])
    assert [file.name for file in leave_out_damage(table)] == [gone]
    table.reload()
    assert table.read(["number"]).num_rows == 2


@pytest.mark.parametrize("fault", [{"refused": 0.2}, {"lost": 0.2}, {"refused": 0.1, "lost": 0.1}], ids=str)
def test_a_store_that_refuses_or_whose_answers_are_lost_loses_and_doubles_nothing(
    tmp_path: Path, minio: Minio, fault: dict[str, float]
) -> None:
    events = [response_event(n) for n in range(60)]
    with BadWay(minio.address, seed=3, **fault) as way:
        settings = minio.settings(way.address)
        direct = minio.place(url=settings.url)
        with plant_on(tmp_path, minio, url=settings.url) as straight:
            straight.append(*events[:30], b"\xff", *events[30:], topic=RESPONSES)
            plant = persist(lambda: Plant(tmp_path, straight.log, minio.place(url=settings.url, address=way.address)))
            ingest = persist(lambda: plant.ingest(RESPONSES, batch_records=10))
            persist(lambda: drained(ingest))
            assert way.faults
            found = audit(direct, [event.response_id for event in events], [])
            assert found.passed
            dead = straight.another().lake.dead_letter.read(["log_offset"])["log_offset"].to_pylist()
            assert dead == [30]


Result = TypeVar("Result")


def persist(act: Callable[[], Result]) -> Result:
    """As the aggregator's loop does: what fails is tried again."""
    for _ in range(60):
        with contextlib.suppress(AttuneError):
            return act()
    raise AssertionError("it did not get through")


def drained(ingest: Ingest) -> None:
    while ingest.poll():
        pass


def test_a_store_that_hangs_is_given_up_in_bounded_time_and_taken_up_again(tmp_path: Path, minio: Minio) -> None:
    with plant_on(tmp_path, minio, request_seconds=1) as plant:
        plant.append(response_event(1))
        ingest = plant.ingest(RESPONSES)
        ingest.poll()
        plant.append(response_event(2))
        with minio.frozen():
            began = time.monotonic()
            with pytest.raises(Unavailable):
                ingest.poll()
            with pytest.raises(Unavailable):
                Lake(plant.lake.place)
            assert time.monotonic() - began < 60
        assert plant.log.positions("aggregator")[RESPONSES, 0] == 1
        while ingest.poll():
            pass
        assert plant.ids("responses") == ["response-1", "response-2"]


def test_a_wrong_secret_is_refused_and_shown_nowhere(tmp_path: Path, minio: Minio) -> None:
    place = minio.place(secret_access_key="another-secret")
    with pytest.raises(Unavailable) as refusal:
        Lake(place)
    assert "403" in refusal.value.message
    shown = [refusal.value.message, repr(place), str(place), repr(minio.settings())]
    config = tmp_path / "attune.toml"
    config.write_text(toml(tmp_path, minio, "s3://attune/x", minio.address))
    shown.append(CliRunner().invoke(app, ["config", "show", "--config", str(config)]).output)
    assert USER in shown[-1]
    for text in shown:
        assert SECRET not in text
        assert "another-secret" not in text


def toml(folder: Path, minio: Minio, url: str, address: tuple[str, int]) -> str:
    return f"""
data = "{folder}"
[lake]
url = "{url}"
endpoint = "http://{address[0]}:{address[1]}"
access_key_id = "{USER}"
secret_access_key = "{SECRET}"
request_seconds = 2
[aggregator]
grpc_port = 0
metrics_port = 0
poll_seconds = 0.05
build_feedback = 10
window_days = 3650
"""


def test_the_aggregator_fills_it_and_builds_and_the_command_line_reads_it(tmp_path: Path, minio: Minio) -> None:
    url = minio.settings().url
    config = tmp_path / "attune.toml"
    config.write_text(toml(tmp_path, minio, url, minio.address))
    process = subprocess.Popen(
        [sys.executable, "-m", "attune.aggregator.main", "--config", str(config)],
    )
    try:
        with plant_on(tmp_path, minio, url=url) as plant:
            plant.append(*[response_event(n) for n in range(10)])
            eventually(lambda: plant.log.positions("aggregator").get((RESPONSES, 0)) == 10, 60)
            plant.append(*[thumb_event(n, n) for n in range(10)])
            eventually(lambda: list_datasets(tmp_path / "datasets", "default", "concierge"), 60)
            eventually(lambda: plant.log.positions("aggregator").get((FEEDBACK, 0)) == 10, 60)
            for command, said in (("stats", "responses"), ("optimize", "deleted"), ("check", "as written")):
                ended = CliRunner().invoke(app, ["lake", command, "--config", str(config)])
                assert ended.exit_code == 0, ended.output
                assert said in ended.output
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert not (tmp_path / "lake").exists()


def test_spark_refuses_it_before_it_starts_and_says_what_to_do() -> None:
    refused = (
        r"Spark reads lakes in folders, and this one is in an object store, s3://b/lake: build with --engine duckdb"
    )
    with pytest.raises(FailedPrecondition, match=refused), open_spark_snapshot(ObjectStore("s3://b/lake")):
        pass


def test_an_address_is_joined_and_named_like_a_folder() -> None:
    place = ObjectStore("s3://bucket/lake", {"secret": "x"})
    assert str(place / "responses") == "s3://bucket/lake/responses"
    assert ((place / "responses").name, (place / "a").options) == ("responses", {"secret": "x"})
    assert replace(place) == place
