import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attune.cli.main import app
from attune.errors import NotFound
from attune.keys import Keys


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["key", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_rotating_says_what_signs_and_what_still_verifies(tmp_path: Path) -> None:
    keys = Keys.load_or_create(tmp_path / "keys")
    where = ("--data", str(tmp_path))
    assert run("rotate-signing", *where) == "k2 signs from now on; still verified: k1\n"
    assert run("rotate-signing", *where) == "k3 signs from now on; still verified: k1, k2\n"
    assert run("rotate-signing", "--retire", *where) == "k4 signs from now on; no older key is kept\n"
    assert [key.key_id for key in Keys.load_or_create(tmp_path / "keys").signing.all()] == ["k4"]
    assert Keys.load_or_create(tmp_path / "keys").split == keys.split, "who is held out stays held out"


def test_a_folder_without_an_installation_is_said_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no data folder of attune"):
        run("rotate-signing", "--data", str(tmp_path / "typo"))
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_the_list_shows_each_key_whole_however_narrow_the_terminal(tmp_path: Path, columns: int) -> None:
    where = ("--data", str(tmp_path))
    roles = [part for role in ("chat", "feedback", "review", "operate") for part in ("--role", role)]
    made = run("create", "--tenant", "acme", *roles, *where).strip().rpartition("-")[0]
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-P", "-m", "attune.cli.main", "key", "list", *where],
        stdout=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns)},
        check=True,
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert made.split("-")[1] in shown
