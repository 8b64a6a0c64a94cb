"""What tells two datasets apart."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from attune.aggregator.datasets import Difference, difference
from tests.lake.test_dataset import ROWS, row, write


def some(chance: random.Random, changed: float) -> dict[int, dict[str, Any]]:
    """Examples by their numbers, of some of which something is otherwise."""
    rows = {number: row(number) for number in range(200) if chance.random() < 0.7}
    for one in rows.values():
        for name, value in (("label", "liked"), ("weight", 0.5), ("split", "train")):
            if chance.random() < changed:
                one[name] = value
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_each_example_is_counted_as_if_all_were_laid_side_by_side(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    before, after = some(chance, 0), some(chance, 0.3) if seed else {}
    both = before.keys() & after.keys()
    found = difference(
        *(
            write(tmp_path / name, pa.Table.from_pylist(list(rows.values()), schema=ROWS))
            for name, rows in (("before", before), ("after", after))
        )
    )
    changed = [sum(before[one][name] != after[one][name] for one in both) for name in ("label", "weight", "split")]
    assert found == Difference({}, len(after) - len(both), len(before) - len(both), len(both), *changed)
