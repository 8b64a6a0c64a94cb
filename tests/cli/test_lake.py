"""`attune lake`, as an operator types it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attune.cli.main import app
from attune.errors import DataLoss, NotFound, Unavailable
from tests.aggregator.office import open_office
from tests.aggregator.plant import Plant
from tests.lake.events import response_event, thumb_event


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A lake with 60 responses in 6 files and a thumb, and the aggregator's office."""
    plant = Plant(tmp_path)
    plant.append(*[response_event(n) for n in range(60)], thumb_event(1, 1))
    plant.ingest_all(batch_records=10)
    plant.close()
    with open_office(tmp_path):
        yield tmp_path


def run(data: Path, *words: str, status: int = 0, typed: str = "") -> str:
    ended = CliRunner().invoke(app, ["lake", *words, "--data", str(data)], input=typed, catch_exceptions=True)
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    assert ended.exit_code == status
    return ended.output


def line_of(output: str, name: str) -> list[str]:
    (line,) = (line for line in output.splitlines() if line.strip().startswith(name))
    return line.split()


def test_stats_say_what_the_tables_hold(data: Path) -> None:
    output = run(data, "stats")
    assert line_of(output, "responses")[1] == "60"
    assert line_of(output, "feedback")[1] == "1"
    assert line_of(output, "dead-letter")[1] == "0"


def test_optimize_says_what_it_did(data: Path) -> None:
    assert "responses: 6 files merged into 1, 0 deleted" in run(data, "optimize")
    assert "responses: 0 files merged into 0, 0 deleted" in run(data, "optimize")
    assert line_of(run(data, "stats"), "responses")[1] == "60"


def test_damage_is_named_and_given_up_only_when_told(data: Path) -> None:
    assert "responses: as written" in run(data, "check")
    assert "nothing is damaged" in run(data, "repair")
    victim = min((data / "lake" / "responses").glob("day=*/*.parquet"), key=lambda file: file.stat().st_mtime_ns)
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    with pytest.raises(DataLoss, match="lake is damaged"):
        run(data, "check")
    output = run(data, "repair", status=1)
    assert victim.name in output
    assert "10 rows" in output
    assert victim.exists()
    assert "1 files left out" in run(data, "repair", "--yes")
    assert "responses: as written" in run(data, "check")
    assert line_of(run(data, "stats"), "responses")[1] == "50"


def test_where_no_lake_is_none_is_made(tmp_path: Path) -> None:
    with open_office(tmp_path):
        for command in ("stats", "optimize"):
            with pytest.raises(NotFound, match="there is no lake yet"):
                run(tmp_path, command)
    for command in ("check", "repair"):
        with pytest.raises(NotFound, match="no lake in"):
            run(tmp_path, command)
    assert not (tmp_path / "lake").exists()


def test_without_an_aggregator_that_runs_the_command_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="aggregator is not running"):
        run(tmp_path, "stats")
