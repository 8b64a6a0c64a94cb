"""`attune lineage` as an operator types it."""

import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attune.cli.main import app
from attune.errors import NotFound
from tests.aggregator.office import open_office
from tests.aggregator.plant import Plant
from tests.lake.events import response_event, thumb_event


def run(data: Path, *words: str) -> str:
    ended = CliRunner().invoke(app, ["lineage", *words, "--data", str(data)], env={"COLUMNS": "160"})
    if ended.exception is not None:
        raise ended.exception
    return ended.output


def test_a_tree_both_ways_and_the_way_between_two(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.append(*[response_event(n) for n in range(9)], *[thumb_event(n, n) for n in range(9)])
    plant.ingest_all()
    dataset_id = plant.build().manifest.dataset_id
    plant.close()
    with open_office(tmp_path) as office:
        office.index.update(threading.Event())
        shown = run(tmp_path, "feedback-1")
        lines = [line.strip("│ ├└─") for line in shown.splitlines()]
        assert lines[0].startswith("feedback feedback-1 thumb")
        assert [line.split()[0] for line in lines] == [
            "feedback", "made", "response", "policy", "went", "example", "dataset",
        ]  # fmt: skip
        assert "and 4 not shown" in run(tmp_path, dataset_id[:10], "--depth", "1")
        assert len(run(tmp_path, "r-1", "--to", dataset_id).splitlines()) == 5
        with pytest.raises(NotFound, match="nothing has that id"):
            run(tmp_path, "r-[bold]")
