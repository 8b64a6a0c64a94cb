import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from attune.errors import DataLoss, NotFound
from attune.lake.dataset import Dataset, Definition, Recipe, list_datasets, open_dataset, write_dataset
from attune.lake.tables import MESSAGES
from tests.disks import small_disk

RECIPE = Recipe("thumbs", "SELECT 1")
ROWS = pa.schema(
    [
        ("example_id", pa.string()),
        ("feedback_ids", pa.list_(pa.string())),
        ("response_id", pa.string()),
        ("turn", pa.int64()),
        ("messages", MESSAGES),
        ("prompt_token_ids", pa.list_(pa.int64())),
        ("output_token_ids", pa.list_(pa.int64())),
        ("output_logprobs", pa.list_(pa.float32())),
        ("label", pa.string()),
        ("certain", pa.bool_()),
        ("weight", pa.float64()),
        ("split", pa.string()),
    ]
)


def row(number: int) -> dict[str, Any]:
    return {
        "example_id": hashlib.sha256(str(number).encode()).hexdigest()[:32],
        "feedback_ids": [f"feedback-{number}"],
        "response_id": f"r-{number:03d}",
        "turn": number,
        "messages": [{"role": "user", "content": f"Grüße {number}"}] * (number % 3),
        "prompt_token_ids": list(range(number)),
        "output_token_ids": [4_000_000_000, number],
        "output_logprobs": [-0.1 * number, -1.0],
        "label": "disliked" if number % 2 else "liked",
        "certain": number % 2 == 0,
        "weight": 1.0 * number,
        "split": "heldout" if number % 5 == 0 else "train",
    }


def table(numbers: list[int]) -> pa.Table:
    return pa.Table.from_pylist([row(number) for number in numbers], schema=ROWS)


def write(folder: Path, rows: pa.Table, created_unix_ms: int = 1, **definition: Any) -> Dataset:
    about: dict[str, Any] = {
        "tenant": "default",
        "persona": "concierge",
        "recipe": RECIPE,
        "settings": {"share": 0.2},
        "seed": 0,
    }
    return write_dataset(
        folder,
        rows.to_reader(),
        Definition(**(about | definition)),
        left_out={"retracted": 2},
        table_versions={"responses": 3},
        feedback_positions={"log/0": 9},
        created_unix_ms=created_unix_ms,
    )


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    written = write(tmp_path, table(list(range(20))))
    opened = open_dataset(tmp_path / written.manifest.dataset_id)
    assert opened == written
    assert opened.table().to_pylist() == table(list(range(20))).sort_by("example_id").to_pylist()
    assert opened.table().schema == ROWS
    assert opened.rebuilt_id() == opened.manifest.dataset_id
    assert opened.manifest.counts == {
        "train": {"liked": 8, "disliked": 8},
        "heldout": {"liked": 2, "disliked": 2},
        "left_out": {"retracted": 2},
        "weighed": {},
    }


def test_the_order_and_slicing_of_rows_do_not_change_the_id(tmp_path: Path) -> None:
    numbers = list(range(20))
    first = write(tmp_path, table(numbers)).manifest.dataset_id
    for seed in range(5):
        random.Random(seed).shuffle(numbers)
        sliced = pa.concat_tables([table(numbers[:7]), table(numbers[7:13]), table([99, *numbers[13:]]).slice(1)])
        assert write(tmp_path / str(seed), sliced).manifest.dataset_id == first


def test_any_change_of_content_recipe_settings_or_seed_changes_the_id(tmp_path: Path) -> None:
    numbers = list(range(6))
    ids = {write(tmp_path, table(numbers)).manifest.dataset_id}
    for name in ROWS.names:
        changed = [row(number) for number in numbers]
        changed[4][name] = row(5)[name] if row(5)[name] != row(4)[name] else type(row(4)[name])()
        if name == "example_id":
            changed[4][name] = row(99)[name]
        ids.add(write(tmp_path, pa.Table.from_pylist(changed, schema=ROWS)).manifest.dataset_id)
    ids.add(write(tmp_path, table(numbers), recipe=Recipe("thumbs", "SELECT 2")).manifest.dataset_id)
    ids.add(write(tmp_path, table(numbers), settings={"share": 0.3}).manifest.dataset_id)
    ids.add(write(tmp_path, table(numbers), seed=1).manifest.dataset_id)
    ids.add(write(tmp_path, table(numbers), persona="tutor").manifest.dataset_id)
    ids.add(write(tmp_path, table(numbers), tenant="other").manifest.dataset_id)
    assert len(ids) == 1 + len(ROWS.names) + 5


def test_moving_a_token_from_one_row_to_the_next_changes_the_id(tmp_path: Path) -> None:
    one, other = [row(1), row(2)], [row(1), row(2)]
    one[0]["prompt_token_ids"], one[1]["prompt_token_ids"] = [1, 2], [3]
    other[0]["prompt_token_ids"], other[1]["prompt_token_ids"] = [1], [2, 3]
    ids = {write(tmp_path, pa.Table.from_pylist(rows, schema=ROWS)).manifest.dataset_id for rows in (one, other)}
    assert len(ids) == 2


def test_an_empty_dataset_is_a_dataset(tmp_path: Path) -> None:
    written = write(tmp_path, table([]))
    assert open_dataset(written.folder).table().num_rows == 0


def test_the_same_inputs_give_the_dataset_that_is_there_already(tmp_path: Path) -> None:
    first = write(tmp_path, table([1, 2]), created_unix_ms=1)
    again = write(tmp_path, table([2, 1]), created_unix_ms=2)
    assert again == first
    assert [path.name for path in tmp_path.iterdir()] == [first.manifest.dataset_id]


@pytest.mark.parametrize("place", [0.02, 0.3, 0.5, 0.98])
@pytest.mark.parametrize("file", ["part-00000.parquet", "manifest.json"])
def test_a_flipped_bit_is_refused(tmp_path: Path, file: str, place: float) -> None:
    written = write(tmp_path, table(list(range(20))))
    path = written.folder / file
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataLoss, match="damaged"):
        open_dataset(written.folder)
    if file != "manifest.json":
        with pytest.raises(DataLoss):
            written.table()
    else:
        assert list_datasets(tmp_path, "default", "concierge") == []


def test_a_dataset_under_another_name_or_with_a_missing_file_is_refused(tmp_path: Path) -> None:
    written = write(tmp_path, table([1]))
    renamed = written.folder.rename(tmp_path / "d-0000")
    with pytest.raises(DataLoss):
        open_dataset(renamed)
    renamed.rename(written.folder)
    (written.folder / "part-00000.parquet").unlink()
    with pytest.raises(DataLoss, match="missing"):
        open_dataset(written.folder)
    with pytest.raises(NotFound):
        open_dataset(tmp_path / "d-1111")


def test_a_damaged_dataset_is_written_anew_from_the_same_inputs(tmp_path: Path) -> None:
    written = write(tmp_path, table([1, 2]))
    (written.folder / "part-00000.parquet").write_bytes(b"")
    again = write(tmp_path, table([1, 2]))
    assert open_dataset(again.folder).table().num_rows == 2
    assert [path.name for path in tmp_path.iterdir()] == [written.manifest.dataset_id]


def test_a_half_written_dataset_is_neither_listed_nor_opened(tmp_path: Path) -> None:
    written = write(tmp_path, table([1, 2]))
    half = tmp_path / ".building-d-1-1"
    half.mkdir()
    (half / "part-00000.parquet").write_bytes(b"half")
    no_manifest = tmp_path / "d-2222"
    no_manifest.mkdir()
    assert list_datasets(tmp_path, "default", "concierge") == [written]
    with pytest.raises(NotFound):
        open_dataset(no_manifest)


def test_datasets_are_listed_by_persona_and_tenant_with_the_newest_last(tmp_path: Path) -> None:
    late = write(tmp_path, table([1]), created_unix_ms=30)
    early = write(tmp_path, table([2]), created_unix_ms=20)
    write(tmp_path, table([3]), persona="tutor")
    write(tmp_path, table([3]), tenant="other")
    assert list_datasets(tmp_path, "default", "concierge") == [early, late]
    assert list_datasets(tmp_path / "nowhere", "default", "concierge") == []


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    rows = table([1])
    noise = random.Random(1)
    noisy = [row(number) | {"text": noise.randbytes(2000).hex()} for number in range(50)]
    with small_disk(tmp_path / "disk", "64k") as disk:
        with pytest.raises(OSError, match="No space left"):
            write(disk, pa.Table.from_pylist(noisy, schema=ROWS))
        assert list(disk.iterdir()) == []
        assert open_dataset(write(disk, rows).folder).table().num_rows == 1


def test_the_manifest_is_json_that_people_can_read(tmp_path: Path) -> None:
    written = write(tmp_path, table([1, 2]))
    content = json.loads((written.folder / "manifest.json").read_text())
    assert content["recipe"] == {"name": "thumbs", "text": "SELECT 1"}
    assert content["files"][0]["rows"] == 2
    assert content["feedback_positions"] == {"log/0": 9}
