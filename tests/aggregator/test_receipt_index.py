"""The receipts' index is a cache: whatever happens to it, it is made again, and holds the same."""

import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import pytest_asyncio

from attune.aggregator.receipt_index import ReceiptIndex
from attune.errors import DataLoss, Unavailable
from attune.eventlog import FEEDBACK
from attune.lake.dataset import Definition, Recipe, write_dataset
from attune.lake.tail import TableTail
from attune.v1 import dataset_pb2
from tests.aggregator.desk import Desk
from tests.aggregator.plant import Plant
from tests.lake.events import response_event, thumb_event

TABLES = (
    "responses", "feedback", "ranked", "datasets", "uses", "policies", "policy_datasets", "left_out", "positions",
    "examples", "contents", "example_feedback", "example_responses",
)  # fmt: skip


@pytest_asyncio.fixture
async def desk(plant: Plant) -> AsyncIterator[Desk]:
    async with Desk.open(plant) as opened:
        yield opened


def fill(desk: Desk, first: int, last: int) -> None:
    """Votes from the first to the last, a dataset of all so far and a policy on it."""
    desk.plant.append(*[response_event(number) for number in range(first, last, 2)])
    desk.plant.append(*[thumb_event(number, number) for number in range(first, last)])
    desk.plant.ingest_all()
    desk.publish(desk.plant.build().manifest.dataset_id)


def content(folder: Path) -> dict[str, list[Any]]:
    """All that the index says, without the numbers it gives to rows."""
    with sqlite3.connect(folder / "receipts.sqlite") as connection:
        names = dict(connection.execute("SELECT number, event_id FROM feedback"))
        datasets = dict(connection.execute("SELECT number, dataset_id FROM datasets"))
        examples = dict(connection.execute("SELECT number, example_id FROM examples"))
        found = {}
        for table in TABLES:
            rows = connection.execute(f"SELECT * FROM {table}").fetchall()
            if table == "contents":
                rows = [(datasets[row[0]], examples[row[1]], row[2]) for row in rows]
            if table == "example_feedback":
                rows = [(names[row[0]], examples[row[1]]) for row in rows]
            if table == "example_responses":
                rows = [(row[0], examples[row[1]]) for row in rows]
            if table in ("feedback", "datasets", "examples"):
                rows = [row[1:] for row in rows]
            if table == "uses":
                rows = [(names[row[0]], datasets[row[1]], row[2]) for row in rows]
            if table == "left_out":
                rows = [(names[row[0]], *row[1:]) for row in rows]
            if table == "ranked":
                rows = [(row[0], names[row[1]]) for row in rows]
            found[table] = sorted(rows, key=str)
    return found


def drop(folder: Path) -> None:
    for file in folder.glob("receipts.sqlite*"):
        file.unlink()


def test_an_index_that_was_removed_or_damaged_is_made_again_with_the_same_content(plant: Plant) -> None:
    desk = Desk(plant)
    fill(desk, 0, 20)
    fill(desk, 20, 40)
    desk.update()
    before = content(plant.folder)
    assert [len(before[table]) for table in ("responses", "feedback", "datasets", "policies")] == [20, 40, 2, 2]
    assert [len(before[table]) for table in ("uses", "contents", "examples", "example_responses")] == [30, 30, 20, 20]
    assert len(before["left_out"]) == 20

    drop(plant.folder)
    desk.update()
    assert content(plant.folder) == before

    drop(plant.folder)
    (plant.folder / "receipts.sqlite").write_bytes(b"SQLite format 3\0" + b"\x07" * 5000)
    with pytest.raises(Unavailable):
        desk.update()
    assert not desk.index.ready
    desk.update()
    assert content(plant.folder) == before


def test_an_index_of_another_format_is_made_anew(plant: Plant) -> None:
    desk = Desk(plant)
    fill(desk, 0, 4)
    desk.update()
    before = content(plant.folder)
    with sqlite3.connect(plant.folder / "receipts.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(Unavailable):
        desk.update()
    desk.update()
    assert content(plant.folder) == before


def test_step_by_step_and_all_at_once_are_the_same(plant: Plant) -> None:
    desk = Desk(plant)
    for start in range(0, 30, 10):
        fill(desk, start, start + 10)
        desk.update()
        desk.update()
    step_by_step = content(plant.folder)
    drop(plant.folder)
    Desk(plant).update()
    assert content(plant.folder) == step_by_step


def test_two_aggregators_may_keep_one_index(plant: Plant) -> None:
    desk, other = Desk(plant), Desk(plant)
    fill(desk, 0, 10)
    desk.update()
    other.update()
    fill(desk, 10, 20)
    workers = [threading.Thread(target=each.index.update, args=(threading.Event(),)) for each in (desk, other)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    both = content(plant.folder)
    drop(plant.folder)
    Desk(plant).update()
    assert content(plant.folder) == both


def test_an_update_that_is_stopped_or_fails_half_way_goes_on_the_next_time(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(plant)
    fill(desk, 0, 10)
    stopped = threading.Event()
    stopped.set()
    desk.index.update(stopped)
    assert not desk.index.ready
    desk.update()
    fill(desk, 10, 20)

    def fails(*_: object) -> None:
        raise DataLoss("the disk has a scratch")

    for step in ("_add_dataset", "_replace_left_out", "_add_policies"):
        with monkeypatch.context() as patched:
            patched.setattr(ReceiptIndex, step, fails)
            with pytest.raises(DataLoss):
                desk.index.update(threading.Event())
    desk.update()
    assert [len(content(plant.folder)[table]) for table in ("feedback", "datasets", "uses")] == [20, 2, 15]


def test_rows_that_are_in_are_not_read_again(plant: Plant) -> None:
    plant.append(*[thumb_event(number, number) for number in range(6)])
    plant.ingest_all(batch_records=2)
    tail = TableTail.open(plant.folder / "lake" / "feedback")
    assert tail is not None
    log_id = plant.log.log_id(FEEDBACK)

    def read(positions: dict[tuple[str, int], int]) -> list[str]:
        batches = tail.rows_after(positions, ["event_id"])
        return sorted(one for batch in batches for one in batch["event_id"].to_pylist())

    assert len(read({})) == 6
    assert read({(log_id, 0): 4}) == ["feedback-4", "feedback-5"]
    assert read({(log_id, 0): 6}) == []
    assert len(read({("another", 0): 6})) == 6
    # Not even when the files are gone that hold nothing new.
    for uri in tail.handle.file_uris():
        Path(uri).unlink()
    assert read({(log_id, 0): 6}) == []
    with pytest.raises(Unavailable):
        read({(log_id, 0): 4})


def test_what_came_into_the_lake_twice_is_there_once_and_the_first_counts(plant: Plant) -> None:
    desk = Desk(plant)
    plant.append(thumb_event(1, 1, comment="first"))
    desk.update()
    plant.append(thumb_event(1, 1, persona="tutor"))
    ingest = plant.ingest(FEEDBACK)
    ingest._seen.__init__([])  # type: ignore[misc]  # as if the first was long ago
    assert ingest.poll() == 1
    desk.update()
    stepwise = content(plant.folder)
    assert [row[4] for row in stepwise["feedback"]] == ["concierge"]
    drop(plant.folder)
    Desk(plant).update()
    assert content(plant.folder) == stepwise


async def test_a_damaged_dataset_is_left_out_and_one_that_was_removed_is_forgotten(desk: Desk) -> None:
    fill(desk, 0, 10)
    kept = desk.plant.build().manifest.dataset_id
    fill(desk, 10, 20)
    (damaged,) = {folder.name for folder in (desk.plant.folder / "datasets").glob("d-*")} - {kept}
    part = desk.plant.folder / "datasets" / damaged / "part-00000.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + b"\x07")
    desk.update()
    assert [use.dataset_id for use in (await desk.receipt("feedback-2")).datasets] == [kept]
    part.write_bytes(whole)
    desk.update()
    assert len((await desk.receipt("feedback-2")).datasets) == 2
    shutil.rmtree(desk.plant.folder / "datasets" / damaged)
    desk.update()
    receipt = await desk.receipt("feedback-2")
    assert [use.dataset_id for use in receipt.datasets] == [kept]
    assert len(receipt.policies) == 1


async def test_an_index_that_vanishes_while_the_service_runs_is_made_again(desk: Desk) -> None:
    fill(desk, 0, 4)
    desk.update()
    drop(desk.plant.folder)
    assert (await desk.refused(feedback_id="feedback-0"))[0] == "UNAVAILABLE"
    desk.update()
    assert (await desk.receipt("feedback-0")).state == dataset_pb2.Receipt.STATE_COUNTS


@pytest.mark.parametrize("splits", [("train", "heldout"), ("heldout", "train")])
async def test_of_several_examples_in_a_dataset_the_one_that_is_learned_from_is_told(
    desk: Desk, splits: tuple[str, str]
) -> None:
    rows = [
        {
            "example_id": f"{number:032x}",
            "label": "x",
            "split": split,
            "feedback_ids": ["feedback-1"],
            "response_ids": ["r-1"],
        }
        for number, split in enumerate(splits)
    ]
    table = pa.Table.from_pylist(rows)
    definition = Definition("default", "concierge", Recipe("pairs", "SELECT 1"), {}, 0)
    write_dataset(
        desk.plant.folder / "datasets",
        table.to_reader(),
        definition,
        left_out={},
        table_versions={},
        feedback_positions={},
        created_unix_ms=1,
    )
    desk.plant.append(thumb_event(1, 1))
    desk.update()
    assert [use.split for use in (await desk.receipt("feedback-1")).datasets] == ["train"]


def test_nothing_that_people_wrote_is_in_it(plant: Plant) -> None:
    desk = Desk(plant)
    plant.append(response_event(1, text="SECRET words"), thumb_event(1, 1, comment="SECRET words"))
    desk.update()
    found = b"".join(file.read_bytes() for file in plant.folder.glob("receipts.sqlite*"))
    assert b"feedback-1" in found
    assert b"SECRET" not in found
    assert b"Call a cab" not in found
