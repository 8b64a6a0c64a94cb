"""Merging, deleting and counting, beside writers and readers."""

import datetime
import os
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from attune.errors import Unavailable
from attune.lake.checksums import read_checksum
from attune.lake.delta import Conflict, LakeTable, load_table
from attune.lake.upkeep import figures_of, optimize
from tests.disks import small_disk

SCHEMA = pa.schema([("number", pa.int64())])
SOURCE = "log/topic/0"
FIRST = datetime.date(2026, 11, 20)


class Days:
    """A calendar that a test turns."""

    def __init__(self) -> None:
        self.today = FIRST

    def __call__(self) -> datetime.date:
        return self.today


def fill(folder: Path, days: int = 3, commits: int = 4) -> LakeTable:
    """A commit a number, so many a day."""
    calendar = Days()
    table = LakeTable(folder, SCHEMA, by_day=True, today=calendar)
    for number in range(days * commits):
        calendar.today = FIRST + datetime.timedelta(days=number // commits)
        table.append(pa.table({"number": pa.array([number], pa.int64())}), SOURCE, number, number + 1)
    table.sync()
    return table


def held(folder: Path) -> list[int]:
    return sorted(load_table(folder).to_pyarrow_table()["number"].to_pylist())


def age(folder: Path, hours: float) -> None:
    """As if everything but the table's log had been written so long ago."""
    then = time.time() - hours * 3600
    for file in folder.rglob("*.parquet"):
        os.utime(file, (then, then))


def data_files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.glob("day=*/*.parquet")}


def test_rows_are_kept_by_the_day_on_which_they_came_in(tmp_path: Path) -> None:
    table = fill(tmp_path / "t")
    found = figures_of("t", table.handle)
    assert found.days == tuple(FIRST + datetime.timedelta(days=n) for n in range(3))
    assert (found.rows, found.files, found.small_files) == (12, 12, 12)
    assert {name.split("/")[0] for name in data_files(tmp_path / "t")} == {f"day={day}" for day in found.days}


def test_the_newest_rows_are_found_without_reading_older_days(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    table = fill(folder)
    for file in folder.glob(f"day={FIRST}/*.parquet"):
        file.unlink()
    since = table.day_of_newest(5)
    assert since == FIRST + datetime.timedelta(days=1)
    assert sorted(table.read(["number"], since)["number"].to_pylist()) == list(range(4, 12))
    assert table.find("number", [5, 99], ["number"], since)["number"].to_pylist() == [5]
    assert table.day_of_newest(13) is None


def test_each_days_small_files_become_one_and_no_row_changes(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    done = optimize(fill(tmp_path / "t"), lambda *step: told.append(step))
    assert (done.merged_files, done.into_files) == (12, 3)
    table = LakeTable(tmp_path / "t", SCHEMA, by_day=True)
    assert figures_of("t", table.handle).files == 3
    assert held(tmp_path / "t") == list(range(12))
    assert table.next_offset(SOURCE) == 12
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert optimize(table).merged_files == 0


def test_what_was_merged_stays_readable_for_as_long_as_the_history(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    table = fill(folder)
    reader = load_table(folder)
    optimize(table)
    age(folder, 1000)  # files are judged by when they were replaced
    assert optimize(table).deleted_files == 0
    assert sorted(reader.to_pyarrow_table()["number"].to_pylist()) == list(range(12))


def test_a_file_of_a_commit_that_is_still_on_its_way_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    table = fill(folder, days=1)
    unfinished = folder / f"day={FIRST}" / "part-unfinished.parquet"
    unfinished.write_bytes(b"a writer is busy with it")
    assert optimize(table).deleted_files == 0
    assert unfinished.exists()
    age(folder, 23)
    assert optimize(table).deleted_files == 0
    age(folder, 25)  # whoever wrote it died long ago
    assert optimize(table).deleted_files == 1
    assert not unfinished.exists()
    assert held(folder) == [0, 1, 2, 3]


def test_nothing_is_deleted_before_the_history_that_the_settings_name_is_over(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    fill(folder)
    table = LakeTable(folder, SCHEMA, by_day=True, history_hours=48)
    properties = table.handle.metadata().configuration
    assert properties["delta.deletedFileRetentionDuration"] == "interval 48 hours"
    assert properties["delta.logRetentionDuration"] == "interval 48 hours"
    unfinished = folder / f"day={FIRST}" / "part-unfinished.parquet"
    unfinished.write_bytes(b"x")
    age(folder, 47)
    assert optimize(table).deleted_files == 0
    age(folder, 49)
    assert optimize(table).deleted_files == 1


def test_a_writer_goes_on_while_another_process_merges(tmp_path: Path) -> None:
    writer = fill(tmp_path / "t")
    other = LakeTable(tmp_path / "t", SCHEMA, by_day=True)
    optimize(other)
    writer.append(pa.table({"number": pa.array([12], pa.int64())}), SOURCE, 12, 13)
    assert held(tmp_path / "t") == list(range(13))


def test_two_that_merge_the_same_files_do_not_both(tmp_path: Path) -> None:
    one = fill(tmp_path / "t")
    other = LakeTable(tmp_path / "t", SCHEMA, by_day=True)
    optimize(one)  # deltalake's own compaction would let both through, and double every row
    with pytest.raises(Conflict):
        optimize(other)
    assert held(tmp_path / "t") == list(range(12))


def test_every_file_has_a_checksum_and_a_deleted_one_has_none(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    table = fill(folder, days=1)
    optimize(table)
    files = data_files(folder)
    assert len(files) == 5
    assert all(read_checksum(folder, name) for name in files)
    for name in files - set(table.files()):
        (folder / name).unlink()
    optimize(table)
    assert {name for name in files if read_checksum(folder, name)} == set(table.files())


def test_a_table_that_is_not_partitioned_is_merged_whole(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    for number in range(4):
        write_deltalake(folder, pa.table({"number": pa.array([number], pa.int64())}), mode="append")
    table = LakeTable(folder, SCHEMA, by_day=True)
    table.append(pa.table({"number": pa.array([4], pa.int64())}), SOURCE, 0, 1)
    assert optimize(table).into_files == 1
    assert held(folder) == [0, 1, 2, 3, 4]
    assert figures_of("t", table.handle).days == ()


def test_a_disk_that_fills_while_files_are_merged_changes_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        table = LakeTable(disk / "t", pa.schema([("number", pa.int64()), ("text", pa.string())]), by_day=True)
        for number in range(6):
            rows = pa.table({"number": pa.array([number], pa.int64()), "text": [os.urandom(250_000).hex()]})
            table.append(rows, SOURCE, number, number + 1)
        table.sync()
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * (shutil.disk_usage(disk).free - (1 << 20)))
        with pytest.raises(Unavailable):
            optimize(table)
        table.reload()
        assert figures_of("t", table.handle).files == 6
        assert held(disk / "t") == list(range(6))
        ballast.unlink()
        assert optimize(table).into_files == 1
        assert held(disk / "t") == list(range(6))
