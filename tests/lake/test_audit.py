import json
import subprocess
import sys
from pathlib import Path

from attune.lake import tables
from attune.lake.audit import audit
from attune.lake.lake import Lake
from attune.lake.rows import row_of
from attune.lake.tables import FEEDBACK, RESPONSES, Position
from tests.lake.events import response_event, thumb_event


def fill(folder: Path, responses: list[int], thumbs: list[int]) -> None:
    lake = Lake(folder)
    rows = [
        row_of(RESPONSES, response_event(n).SerializeToString(), Position("log", 0, place))
        for place, n in enumerate(responses)
    ]
    lake.responses.append(tables.to_arrow(RESPONSES, rows), "log/responses/0", 0, len(rows))
    rows = [
        row_of(FEEDBACK, thumb_event(n, n).SerializeToString(), Position("log", 0, place))
        for place, n in enumerate(thumbs)
    ]
    lake.feedback.append(tables.to_arrow(FEEDBACK, rows), "log/feedback/0", 0, len(rows))


def test_everything_that_was_acknowledged_is_there_once(tmp_path: Path) -> None:
    fill(tmp_path, [1, 2, 3], [1, 2])
    assert audit(tmp_path, ["r-1", "r-2", "r-2"], ["feedback-1"]).passed


def test_what_is_missing_or_twice_is_named(tmp_path: Path) -> None:
    fill(tmp_path, [1, 2, 2], [1, 1])
    found = audit(tmp_path, ["r-1", "r-9"], ["feedback-1", "feedback-8"])
    assert not found.passed
    assert found.missing == ("r-9", "feedback-8")
    assert found.repeated == ("r-2", "feedback-1")
    assert found.acknowledged == 4


def test_without_a_lake_everything_is_missing(tmp_path: Path) -> None:
    assert audit(tmp_path, ["r-1"], []).missing == ("r-1",)


def test_the_script_says_so_and_exits_accordingly(tmp_path: Path) -> None:
    fill(tmp_path / "lake", [1], [1])
    responses, feedback = tmp_path / "responses.txt", tmp_path / "feedback.txt"
    feedback.write_text("feedback-1\n")
    command = [sys.executable, "-m", "attune.lake.audit", "--data", str(tmp_path)]
    command += ["--responses", str(responses), "--feedback", str(feedback)]
    for told, missing in (("r-1\n", []), ("r-1\nr-2\n", ["r-2"])):
        responses.write_text(told)
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert json.loads(ended.stdout)["missing"] == missing
        assert ended.returncode == len(missing)
