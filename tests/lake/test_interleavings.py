"""Two writers on one table, in every order of their steps.

A writer's step is one of: a look at the newest version (reload), a try to append the batch that follows where its
handle stands, a try to merge files. Between the look and the commit anything may happen, for a handle is what its
writer saw last: a zombie that returns is a writer whose steps come late, and one that dies lacks the last ones.
"""

import contextlib
import itertools
from pathlib import Path

import pyarrow as pa
import pytest

from attune.errors import DataLoss, Unavailable
from attune.lake.delta import Conflict, LakeTable, load_table

SCHEMA = pa.schema([("number", pa.int64()), ("by", pa.string())])
SOURCE = "log/topic/0"
BATCH = 3
END = 18


class Writer:
    """Moves the numbers from 0 to END into the table, as ingest does with records."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._table = LakeTable(folder, SCHEMA, by_day=True)

    def step(self, what: str) -> None:
        if what == "look":
            self._table.reload()
            return
        if what == "merge":
            with contextlib.suppress(Conflict):
                for _ in self._table.merge(1 << 30):
                    pass
            return
        first = self._table.next_offset(SOURCE)
        numbers = list(range(first, min(first + BATCH, END)))
        if not numbers:
            return
        rows = pa.table({"number": pa.array(numbers, pa.int64()), "by": [self._name] * len(numbers)})
        try:
            self._table.append(rows, SOURCE, first, numbers[-1] + 1)
        except (Conflict, Unavailable):
            return  # ingest drops the batch and looks anew; whether it looks, the steps say


def held(folder: Path) -> list[int]:
    return list(load_table(folder).to_pyarrow_table()["number"].to_pylist())


def check(folder: Path) -> None:
    """Every number up to the stored offset, once, and none behind it."""
    stored = LakeTable(folder, SCHEMA, by_day=True).next_offset(SOURCE)
    assert sorted(held(folder)) == list(range(stored))


def orders(one: tuple[str, ...], other: tuple[str, ...]) -> list[list[tuple[int, str]]]:
    """Every way to put the steps of both in one row."""
    found = []
    for places in itertools.combinations(range(len(one) + len(other)), len(one)):
        steps = [iter(one), iter(other)]
        turns = [0 if place in places else 1 for place in range(len(one) + len(other))]
        found.append([(turn, next(steps[turn])) for turn in turns])
    return found


STALE = ("append", "append", "append")
REFRESHED = ("look", "append", "look", "append")
MERGES = ("append", "merge", "append")


@pytest.mark.parametrize(
    ("one", "other"),
    [(STALE, STALE), (STALE, REFRESHED), (REFRESHED, REFRESHED), (STALE, MERGES), (MERGES, MERGES)],
    ids=["both stale", "one refreshed", "both refreshed", "one merges", "both merge"],
)
def test_in_every_order_each_number_is_there_once(tmp_path: Path, one: tuple[str, ...], other: tuple[str, ...]) -> None:
    for number, order in enumerate(orders(one, other)):
        folder = tmp_path / f"{number}"
        earlier = Writer("earlier", folder)
        earlier.step("append")
        earlier.step("append")
        writers = Writer("one", folder), Writer("other", folder)
        for turn, what in order:
            writers[turn].step(what)
        check(folder)
        finisher = Writer("finisher", folder)
        for _ in range(END // BATCH):
            finisher.step("append")
        assert sorted(held(folder)) == list(range(END)), order


@pytest.mark.parametrize("gone", ["all", "the middle", "the oldest"])
def test_a_zombie_that_returns_after_the_log_was_cleaned_up_commits_nothing_into_the_past(
    tmp_path: Path, gone: str
) -> None:
    """Versions that nobody can see any more would be free to be written again."""
    folder = tmp_path / "t"
    zombie = Writer("zombie", folder)
    zombie.step("append")
    other = Writer("other", folder)
    other.step("append")
    other.step("append")
    table = load_table(folder)
    table.create_checkpoint()
    newest = int(table.version())
    log = folder / "_delta_log"
    entries = {"all": range(newest), "the middle": range(2, newest), "the oldest": range(1)}[gone]
    for version in entries:
        (log / f"{version:020d}.json").unlink()
    before = sorted(path.name for path in log.iterdir())
    for _ in range(3):
        with contextlib.suppress(DataLoss):  # what it stands on is gone: ingest looks anew
            zombie.step("append")
    assert sorted(path.name for path in log.iterdir()) == before
    check(folder)
    zombie.step("look")
    zombie.step("append")
    check(folder)
    assert sorted(held(folder)) == list(range(4 * BATCH))
