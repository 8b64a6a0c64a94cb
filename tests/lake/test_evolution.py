"""Tables that an older version wrote, before most columns and before days (`written_before`), are gone on with."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from attune.lake.delta import load_table
from attune.lake.tables import FEEDBACK, RESPONSES, SCHEMAS
from attune.lake.upkeep import figures_of, optimize
from attune.v1 import event_pb2
from tests.aggregator.plant import Plant, ids_of
from tests.lake.events import response_event, thumb_event

WRITTEN_BEFORE = Path(__file__).with_name("written_before")


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    """Four responses and four thumbs are there from before."""
    shutil.copytree(WRITTEN_BEFORE, tmp_path / "lake")
    opened = Plant(tmp_path)
    yield opened
    opened.close()


def test_the_fixture_lacks_what_came_later() -> None:
    for name, columns in ((RESPONSES, {"tools", "reasoning"}), (FEEDBACK, {"rating", "author"})):
        assert columns <= set(SCHEMAS[name].names)
        assert not columns & {field.name for field in load_table(WRITTEN_BEFORE / name).schema().fields}


def test_columns_are_added_and_older_rows_have_nothing_in_them(plant: Plant) -> None:
    tool = event_pb2.Tool(name="cab", description="Calls a cab.", parameters_json="{}")
    rating = thumb_event(9, 9)
    rating.rating = 4
    plant.append(response_event(9, tools=[tool]), rating)
    plant.ingest_all()
    responses = plant.another().lake.responses.read(["response_id", "tools", "text"]).to_pylist()
    assert {row["response_id"]: row["tools"] and row["tools"][0]["name"] for row in responses} == {
        "r-0": None,
        "r-1": None,
        "r-2": None,
        "r-3": None,
        "r-9": "cab",
    }
    assert {row["text"] for row in responses} == {f"Done. {n}" for n in (0, 1, 2, 3, 9)}
    feedback = plant.another().lake.feedback.read(["event_id", "thumb", "rating"]).to_pylist()
    assert {row["event_id"]: (row["thumb"], row["rating"]) for row in feedback} == {
        "feedback-0": ("up", None),
        "feedback-1": ("down", None),
        "feedback-2": ("up", None),
        "feedback-3": ("down", None),
        "feedback-9": (None, 4),
    }


def test_where_it_stood_and_what_it_saw_is_still_known(plant: Plant) -> None:
    assert plant.lake.responses.next_offset("log/attune.responses/0") == 4
    plant.append(response_event(3), response_event(4))
    plant.ingest_all()
    assert plant.ids("responses") == ids_of([response_event(n) for n in range(5)])


def test_old_and_new_rows_make_one_dataset_and_merge_into_one_file(plant: Plant) -> None:
    plant.append(response_event(4), thumb_event(4, 4))
    plant.ingest_all()
    before = plant.build()
    assert before.table().num_rows == 5
    for table in (plant.lake.responses, plant.lake.feedback):
        assert optimize(table).into_files == 1
        assert figures_of(table.name, table.handle).rows == 5
    assert plant.build().manifest.dataset_id == before.manifest.dataset_id
