import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deltalake import write_deltalake

from attune.lake.tables import FEEDBACK, RESPONSES, to_arrow
from attune.rehearsal.faults import FaultError, Ledger, Ring, compare, differences, until


def write_lake(data: Path, table: str, rows: list[dict[str, object]]) -> None:
    write_deltalake(data / "lake" / table, to_arrow(table, rows), mode="append")


def response_row(response_id: str, text: str) -> dict[str, object]:
    return {"response_id": response_id, "policy_id": "base", "text": text}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "told.jsonl")
    for number in (1, 2, 3):
        ledger.told_response(f"r-{number}", "base", f"answer {number}")
        ledger.told_feedback(f"f-{number}", f"r-{number}")
    yield ledger
    ledger.close()


def test_a_lake_with_everything_once_has_no_misses(tmp_path: Path, ledger: Ledger) -> None:
    write_lake(tmp_path, RESPONSES, [response_row(f"r-{number}", f"answer {number}") for number in (1, 2, 3, 4)])
    write_lake(tmp_path, FEEDBACK, [{"event_id": f"f-{number}"} for number in (1, 2, 3)])
    found = compare(tmp_path, ledger)
    assert (found.acknowledged, found.missing, found.repeated) == (6, (), ())
    assert differences(tmp_path, ledger) == []


def test_what_is_lost_twice_or_altered_is_found(tmp_path: Path, ledger: Ledger) -> None:
    write_lake(tmp_path, RESPONSES, [response_row("r-1", "answer 1"), response_row("r-2", "another answer")])
    write_lake(tmp_path, FEEDBACK, [{"event_id": name} for name in ("f-1", "f-2", "f-2", "f-3")])
    found = compare(tmp_path, ledger)
    assert (found.missing, found.repeated) == (("r-3",), ("f-2",))
    assert differences(tmp_path, ledger) == ["not in the lake as it was told: r-2"]


def test_without_a_lake_everything_is_missing(tmp_path: Path, ledger: Ledger) -> None:
    assert len(compare(tmp_path, ledger).missing) == 6


def test_a_process_of_the_ring_that_is_left_over_is_found(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "data", None, {})
    assert ring.left() == []
    orphan = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        env={**os.environ, "ATTUNE_DATA": str(tmp_path / "data")},
        start_new_session=True,
    )
    try:
        assert [process.pid for process in until(ring.left, 10, "it is found")] == [orphan.pid]
    finally:
        orphan.kill()
        orphan.wait()
    assert ring.left() == []


def test_what_never_comes_true_is_named() -> None:
    with pytest.raises(FaultError, match="pigs fly: still not so after 0 s"):
        until(lambda: False, 0, "pigs fly")
