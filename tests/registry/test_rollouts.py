import json
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from attune.errors import Aborted, DataLoss, InvalidInput, Unavailable
from attune.registry.rollouts import RolloutEntry, RolloutLog


def entry_of(
    number: int, policy_id: str = "p-000001", persona: str = "concierge", author: str = "gate"
) -> RolloutEntry:
    return RolloutEntry(number, "default", persona, ((policy_id, 1.0),), author, "because", 1_700_000_000_000)  # type: ignore[arg-type]


@pytest.fixture
def log(tmp_path: Path) -> RolloutLog:
    return RolloutLog(tmp_path / "registry")


def test_before_the_first_entry_there_is_none(log: RolloutLog) -> None:
    assert log.current("default", "concierge") is None
    assert log.history("default", "concierge") == ()
    assert log.personas() == ()


def test_entries_come_back_as_they_were_in_order(log: RolloutLog) -> None:
    entries = [entry_of(number, f"p-{number:06d}") for number in range(1, 12)]
    for entry in entries:
        log.append(entry)
    log.append(entry_of(1, persona="tutor"))

    assert log.history("default", "concierge") == tuple(entries)
    assert log.current("default", "concierge") == entries[-1]
    assert log.personas() == (("default", "concierge"), ("default", "tutor"))


def test_of_several_who_append_the_same_number_one_wins_and_the_others_know(log: RolloutLog) -> None:
    def append(writer: int) -> bool:
        try:
            log.append(entry_of(1, f"p-{writer + 1:06d}"))
        except Aborted:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(append, range(32)))

    assert won.count(True) == 1
    assert log.history("default", "concierge") == (entry_of(1, f"p-{won.index(True) + 1:06d}"),)


@pytest.mark.parametrize("number", [1, 3, 7])
def test_an_entry_that_is_not_the_next_one_is_refused(log: RolloutLog, number: int) -> None:
    log.append(entry_of(1))
    with pytest.raises(Aborted):
        log.append(entry_of(number))
    assert len(log.history("default", "concierge")) == 1


@pytest.mark.parametrize(
    "shares",
    [
        (),
        (("p-000001", 0.5),),
        (("p-000001", 0.0), ("base", 1.0)),
        (("p-000001", float("nan")),),
        (("p-000001", 1.5), ("base", -0.5)),
        (("p-000001", 0.5), ("p-000001", 0.5)),
        (("../p-000001", 1.0),),
        tuple((f"p-{number:06d}", 1 / 17) for number in range(1, 18)),
    ],
)
def test_shares_that_do_not_add_up_are_no_rollout(shares: tuple[tuple[str, float], ...]) -> None:
    with pytest.raises(InvalidInput):
        RolloutEntry(1, "default", "concierge", shares, "gate", "", 0)


def test_the_main_policy_has_the_largest_share() -> None:
    entry = RolloutEntry(1, "default", "concierge", (("base", 0.25), ("p-000002", 0.75)), "gate", "", 0)
    assert entry.main_policy_id == "p-000002"


def test_an_unknown_author_a_long_reason_and_a_bad_name_are_refused() -> None:
    with pytest.raises(InvalidInput):
        entry_of(1, author="somebody")
    with pytest.raises(InvalidInput, match="1001 characters"):
        RolloutEntry(1, "default", "concierge", (("base", 1.0),), "operator", "x" * 1001, 0)
    with pytest.raises(InvalidInput):
        entry_of(1, persona="../concierge")


def test_a_damaged_newest_entry_is_said_to_be_damaged(log: RolloutLog, tmp_path: Path) -> None:
    log.append(entry_of(1))
    log.append(entry_of(2))
    file = tmp_path / "registry" / "rollouts" / "default" / "concierge" / "2.json"
    whole = file.read_bytes()
    values = json.loads(whole)
    damaged = [
        b"",
        whole[:-1],
        b"x" * 100_000,
        (file.parent / "1.json").read_bytes(),
        json.dumps(values | {"shares": [{"policy_id": "/etc", "share": 1.0}]}).encode(),
        json.dumps(values | {"author": "somebody"}).encode(),
        json.dumps(values | {"persona": "tutor"}).encode(),
    ]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(DataLoss):
            log.current("default", "concierge")
        with pytest.raises(DataLoss):
            log.history("default", "concierge")

    file.unlink()
    file.symlink_to(file.parent / "1.json")
    with pytest.raises(DataLoss):
        log.current("default", "concierge")


def test_a_missing_entry_is_damage(log: RolloutLog, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        log.append(entry_of(number))
    (tmp_path / "registry" / "rollouts" / "default" / "concierge" / "2.json").unlink()
    with pytest.raises(DataLoss, match="missing"):
        log.history("default", "concierge")


def test_what_a_crash_left_and_strange_folders_are_not_looked_at(log: RolloutLog, tmp_path: Path) -> None:
    log.append(entry_of(1))
    rollouts = tmp_path / "registry" / "rollouts"
    (rollouts / "default" / "concierge" / ".draft-2.json.77.abc").write_bytes(b"half")
    (rollouts / "default" / "concierge" / "02.json").write_bytes(b"x")
    (rollouts / "lost+found").mkdir()
    (rollouts / "default" / "Strange Name").mkdir()

    assert log.history("default", "concierge") == (entry_of(1),)
    assert log.personas() == (("default", "concierge"),)
    log.append(entry_of(2))


@contextmanager
def no_room() -> Iterator[None]:
    """No file may grow, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_refuses_an_entry_and_leaves_the_log_whole(log: RolloutLog, tmp_path: Path) -> None:
    log.append(entry_of(1))
    with no_room(), pytest.raises(Unavailable, match="File too large"):
        log.append(entry_of(2))
    folder = tmp_path / "registry" / "rollouts" / "default" / "concierge"
    assert [file.name for file in folder.iterdir()] == ["1.json"]
    log.append(entry_of(2))
    assert len(log.history("default", "concierge")) == 2
