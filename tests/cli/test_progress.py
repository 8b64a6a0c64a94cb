"""The bar of what takes long, as a terminal sees it."""

import contextlib
import os
import subprocess
import sys

import pytest

from tests.eventlog.waiting import eventually

LONG = """
import sys
from attune.cli.progress import progress
with progress("reading", {total}, patience_seconds={patience}) as done:
    done(1)
    sys.stdin.readline()
    print("said meanwhile")
"""


class Terminal:
    """A process whose errors go to a terminal, and whose output goes into a pipe."""

    def __init__(self, total: int | None, patience: float) -> None:
        self._terminal, theirs = os.openpty()
        os.set_blocking(self._terminal, False)
        command = [sys.executable, "-c", LONG.format(total=total, patience=patience)]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, stderr=theirs, text=True, env=environment, **pipes)  # type: ignore[call-overload]
        os.close(theirs)
        self.seen = ""

    def look(self) -> str:
        with contextlib.suppress(OSError):  # nothing new, or it has ended
            self.seen += os.read(self._terminal, 1 << 16).decode(errors="replace")
        return self.seen

    def end(self) -> str:
        """What it said in the pipe."""
        said, _ = self._process.communicate("\n", timeout=30)
        self.look()
        os.close(self._terminal)
        return str(said)


@pytest.mark.parametrize(("total", "shown"), [(4, "25%"), (None, "0:00:0")])
def test_what_takes_long_shows_a_bar_by_itself_and_its_output_goes_where_it_was_sent(
    total: int | None, shown: str
) -> None:
    terminal = Terminal(total, 0.01)
    eventually(lambda: "reading" in terminal.look() and shown in terminal.seen, 30)
    assert terminal.end() == "said meanwhile\n"
    assert "said meanwhile" not in terminal.seen


def test_what_is_quick_shows_none() -> None:
    terminal = Terminal(4, 60)
    assert terminal.end() == "said meanwhile\n"
    assert terminal.seen == ""
