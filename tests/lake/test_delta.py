"""Exactly once, on a real Delta table."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from attune.errors import DataLoss, Unavailable
from attune.lake.delta import Conflict, LakeTable

SCHEMA = pa.schema([("number", pa.int64())])
SOURCE = "log/topic/0"


def rows(*numbers: int) -> pa.Table:
    return pa.table({"number": pa.array(numbers, pa.int64())})


def held(folder: Path) -> list[int]:
    return sorted(LakeTable(folder, SCHEMA).read(["number"])["number"].to_pylist())


def test_rows_and_the_next_offset_are_committed_together(tmp_path: Path) -> None:
    table = LakeTable(tmp_path / "t", SCHEMA)
    assert table.next_offset(SOURCE) == 0
    table.append(rows(1, 2), SOURCE, 0, 2)
    table.append(rows(), SOURCE, 2, 5)
    again = LakeTable(tmp_path / "t", SCHEMA)
    assert again.next_offset(SOURCE) == 5
    assert again.next_offset("log/topic/1") == 0
    assert held(tmp_path / "t") == [1, 2]


def test_a_batch_that_does_not_begin_at_the_stored_offset_is_dropped(tmp_path: Path) -> None:
    table = LakeTable(tmp_path / "t", SCHEMA)
    table.append(rows(1, 2), SOURCE, 0, 2)
    for first in (0, 1, 3):
        with pytest.raises(Conflict):
            table.append(rows(9), SOURCE, first, first + 1)
    assert held(tmp_path / "t") == [1, 2]


def test_a_writer_that_was_overtaken_cannot_commit_even_behind_a_compaction(tmp_path: Path) -> None:
    zombie = LakeTable(tmp_path / "t", SCHEMA)
    other = LakeTable(tmp_path / "t", SCHEMA)
    other.append(rows(1), SOURCE, 0, 1)
    other.append(rows(2), SOURCE, 1, 2)
    other.handle.optimize.compact()
    with pytest.raises(Conflict):
        zombie.append(rows(1), SOURCE, 0, 1)
    zombie.reload()
    assert zombie.next_offset(SOURCE) == 2
    zombie.append(rows(3), SOURCE, 2, 3)
    assert held(tmp_path / "t") == [1, 2, 3]


def test_another_source_does_not_conflict(tmp_path: Path) -> None:
    one = LakeTable(tmp_path / "t", SCHEMA)
    other = LakeTable(tmp_path / "t", SCHEMA)
    one.append(rows(1), "log/topic/0", 0, 1)
    other.append(rows(2), "log/topic/1", 0, 1)
    assert held(tmp_path / "t") == [1, 2]


def test_many_small_commits_stay_few_files_and_every_row(tmp_path: Path) -> None:
    table = LakeTable(tmp_path / "t", SCHEMA)
    for number in range(150):
        table.append(rows(number), SOURCE, number, number + 1)
        table.sync()
        table.tidy()
    assert len(table.handle.file_uris()) < 70
    assert held(tmp_path / "t") == list(range(150))
    assert LakeTable(tmp_path / "t", SCHEMA).next_offset(SOURCE) == 150


def test_many_processes_make_one_table(tmp_path: Path) -> None:
    script = """
import sys, pyarrow as pa
from pathlib import Path
from attune.lake.delta import LakeTable
sys.stdin.readline()
LakeTable(Path(sys.argv[1]), pa.schema([("number", pa.int64())]))
"""
    openers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "t")], stdin=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("go\n")
        opener.stdin.flush()
    assert [opener.wait(30) for opener in openers] == [0, 0, 0]
    assert held(tmp_path / "t") == []


def entry(folder: Path, version: int) -> Path:
    return folder / "_delta_log" / f"{version:020d}.json"


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    table = LakeTable(tmp_path / "t", SCHEMA)
    for number in range(6):
        table.append(rows(number), SOURCE, number, number + 1)
    entry(tmp_path / "t", 1).write_text("{half")
    with pytest.raises(DataLoss):
        LakeTable(tmp_path / "t", SCHEMA)


@pytest.mark.parametrize("torn", ["entry cut short", "entry empty", "data cut short", "data absent", "the one before"])
def test_what_a_power_cut_left_of_the_newest_commits_is_set_aside(tmp_path: Path, torn: str) -> None:
    folder = tmp_path / "t"
    table = LakeTable(folder, SCHEMA)
    before = set(folder.glob("*.parquet"))
    for number in range(3):
        before = set(folder.glob("*.parquet"))
        table.append(rows(number), SOURCE, number, number + 1)
    data = (set(folder.glob("*.parquet")) - before).pop()
    newest = entry(folder, 3)
    match torn:
        case "entry cut short":
            newest.write_text(newest.read_text()[:-20])
        case "entry empty":
            newest.write_text("")
        case "data cut short":
            data.write_bytes(data.read_bytes()[:-10])
        case "data absent":
            data.unlink()
        case "the one before":
            entry(folder, 2).write_text("")
    again = LakeTable(folder, SCHEMA)
    goes_on = 1 if torn == "the one before" else 2
    assert again.next_offset(SOURCE) == goes_on
    for number in range(goes_on, 3):
        again.append(rows(number), SOURCE, number, number + 1)
    assert held(folder) == [0, 1, 2]


def test_a_compaction_that_was_torn_gives_the_merged_files_back(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    table = LakeTable(folder, SCHEMA)
    for number in range(3):
        table.append(rows(number), SOURCE, number, number + 1)
    before = set(folder.glob("*.parquet"))
    table.handle.optimize.compact()
    merged = (set(folder.glob("*.parquet")) - before).pop()
    LakeTable(folder, SCHEMA)
    assert merged.exists()
    assert held(folder) == [0, 1, 2]
    merged.write_bytes(b"torn")
    assert held(folder) == [0, 1, 2]
    assert LakeTable(folder, SCHEMA).next_offset(SOURCE) == 3


def test_a_torn_checkpoint_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    table = LakeTable(folder, SCHEMA)
    for number in range(3):
        table.append(rows(number), SOURCE, number, number + 1)
    table.handle.create_checkpoint()
    checkpoint = entry(folder, 3).with_suffix(".checkpoint.parquet")
    checkpoint.write_bytes(checkpoint.read_bytes()[:50])
    again = LakeTable(folder, SCHEMA)
    assert again.next_offset(SOURCE) == 3
    assert held(folder) == [0, 1, 2]


def test_a_store_that_cannot_be_written_is_unavailable_and_the_next_try_succeeds(tmp_path: Path) -> None:
    table = LakeTable(tmp_path / "t", SCHEMA)
    log = tmp_path / "t" / "_delta_log"
    hidden = log.with_name("hidden")
    log.rename(hidden)
    log.write_text("no folder")
    with pytest.raises((Unavailable, DataLoss)):
        table.append(rows(1), SOURCE, 0, 1)
    log.unlink()
    hidden.rename(log)
    table.reload()
    table.append(rows(1), SOURCE, 0, 1)
    assert held(tmp_path / "t") == [1]
