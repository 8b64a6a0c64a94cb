"""`attune log tail` as an operator types it."""

import subprocess
import sys
from pathlib import Path

from tests.aggregator.office import open_office
from tests.aggregator.plant import Plant
from tests.lake.events import response_event, thumb_event


def test_events_are_shown_as_they_come_until_told_to_end(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    with open_office(tmp_path):
        words = ["log", "tail", "--most", "3", "--text", "--data", str(tmp_path)]
        command = [sys.executable, "-m", "attune.cli.main", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            assert running.stderr is not None
            assert "looking on" in running.stderr.readline()
            plant.append(response_event(1, text="[bold]Done."), thumb_event(1, 1, comment="No.\x1b[2J"))
            plant.append(b"\xff\xff", topic="attune.feedback")
            output, _ = running.communicate(timeout=60)
    plant.close()
    assert running.returncode == 0
    lines = output.splitlines()
    assert "r-1 base stop 3+2 tokens in 10 ms responses/0/0" in lines[0]
    assert lines[1:3] == ["    > Call a cab, please. 1", "    < [bold]Done."]
    assert "thumb down by end user on r-1 feedback/0/0" in lines[3]
    assert lines[4].startswith("    comment: No.")
    assert "\x1b[2J" not in output
    assert lines[5].startswith("unreadable:")
