"""Files that vanish or change on the disk."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attune.errors import DataLoss
from attune.lake.checksums import read_checksum
from attune.lake.damage import check_undamaged, find_damage, leave_out_damage
from attune.lake.delta import LakeTable
from attune.lake.upkeep import optimize

SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string())])
SOURCE = "log/topic/0"
COMMITS = 8


@pytest.fixture
def table(tmp_path: Path) -> LakeTable:
    """Eight commits of ten rows."""
    made = LakeTable(tmp_path / "t", SCHEMA, by_day=True)
    for commit in range(COMMITS):
        numbers = list(range(10 * commit, 10 * commit + 10))
        texts = [f"text {number}" for number in numbers]
        rows = pa.table({"number": pa.array(numbers, pa.int64()), "text": texts})
        made.append(rows, SOURCE, 10 * commit, 10 * commit + 10)
        made.sync()
    return made


def oldest(table: LakeTable) -> Path:
    """The file of the first commit: no power cut can be to blame for what happens to it."""
    assert table.folder is not None
    for name in table.files():
        if 0 in pq.ParquetFile(table.folder / name).read(["number"])["number"].to_pylist():
            return table.folder / name
    raise AssertionError("no file has the first number")


def held(folder: Path) -> list[int]:
    return sorted(LakeTable(folder, SCHEMA, by_day=True).read(["number"])["number"].to_pylist())


def test_an_undamaged_table_has_no_damage(table: LakeTable) -> None:
    told: list[tuple[int, int]] = []
    assert find_damage(table.place, table.handle, lambda done, of: told.append((done, of))) == []
    check_undamaged([(table.place, table.handle)])
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] > 0


def test_any_flipped_bit_is_found(table: LakeTable) -> None:
    file, chance = oldest(table), random.Random(5)
    sound = file.read_bytes()
    for _ in range(300):
        flipped = bytearray(sound)
        flipped[chance.randrange(len(sound))] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        (found,) = find_damage(table.place, table.handle)
        assert (found.name, found.rows, found.reason) == (
            str(file.relative_to(table.place)),  # type: ignore[arg-type]
            10,
            "its SHA-256 is another",
        )
    file.write_bytes(sound)
    check_undamaged([(table.place, table.handle)])


@pytest.mark.parametrize("damage", ["missing", "cut short", "flipped"])
def test_a_damaged_file_is_named_and_can_be_left_out(table: LakeTable, damage: str) -> None:
    folder, file = table.folder, oldest(table)
    assert folder is not None
    content = file.read_bytes()
    match damage:
        case "missing":
            file.unlink()
        case "cut short":
            file.write_bytes(content[:-1])
        case "flipped":
            file.write_bytes(content[:50] + bytes([content[50] ^ 4]) + content[51:])
    with pytest.raises(DataLoss, match=file.name):
        check_undamaged([(table.place, table.handle)])
    (left_out,) = leave_out_damage(table)
    assert left_out.rows == 10
    assert held(folder) == list(range(10, 10 * COMMITS))
    again = LakeTable(folder, SCHEMA, by_day=True)
    assert again.next_offset(SOURCE) == 10 * COMMITS
    check_undamaged([(again.place, again.handle)])
    assert leave_out_damage(again) == []
    kept = folder / "_damaged" / file.relative_to(folder)
    assert kept.exists() == (damage != "missing")
    optimize(again)
    assert held(folder) == list(range(10, 10 * COMMITS))


def test_a_damaged_file_does_not_stop_the_writer(table: LakeTable) -> None:
    oldest(table).unlink()
    end = 10 * COMMITS
    table.append(pa.table({"number": pa.array([end], pa.int64()), "text": ["more"]}), SOURCE, end, end + 1)
    table.sync()
    assert table.next_offset(SOURCE) == end + 1


def test_a_checksum_that_a_power_cut_took_is_no_damage(table: LakeTable) -> None:
    folder, file = table.folder, oldest(table)
    assert folder is not None
    name = str(file.relative_to(folder))
    (folder / "_checksums" / f"{name}.sha256").write_bytes(b"")
    assert read_checksum(folder, name) is None
    check_undamaged([(table.place, table.handle)])
