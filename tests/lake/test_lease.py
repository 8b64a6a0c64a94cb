"""One at a time, and never for ever."""

import threading
from pathlib import Path

from attune.lake.lease import Leases


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_one_has_it_and_the_other_gets_it_when_the_time_is_over(tmp_path: Path) -> None:
    clock = Clock()
    one, other = Leases(tmp_path, 10, clock), Leases(tmp_path, 10, clock)
    assert one.hold("default.concierge")
    assert not other.hold("default.concierge")
    assert other.hold("default.tutor")
    clock.now += 11
    assert other.hold("default.concierge")
    assert not one.hold("default.concierge")


def test_who_asks_again_keeps_it(tmp_path: Path) -> None:
    clock = Clock()
    one, other = Leases(tmp_path, 10, clock), Leases(tmp_path, 10, clock)
    for _ in range(20):
        assert one.hold("work")
        clock.now += 6
        assert not other.hold("work")
    assert len(list((tmp_path / "work").iterdir())) <= 4


def test_what_is_released_is_free_at_once_and_only_by_its_holder(tmp_path: Path) -> None:
    one, other = Leases(tmp_path, 10), Leases(tmp_path, 10)
    assert one.hold("work")
    other.release("work")
    assert not other.hold("work")
    one.release("work")
    assert other.hold("work")


def test_a_damaged_entry_is_as_good_as_over(tmp_path: Path) -> None:
    one, other = Leases(tmp_path, 10), Leases(tmp_path, 10)
    assert one.hold("work")
    (tmp_path / "work" / "1.json").write_text("{")
    assert other.hold("work")


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    start, got = threading.Barrier(16), []

    def take(leases: Leases) -> None:
        start.wait()
        got.append(leases.hold("work"))

    threads = [threading.Thread(target=take, args=(Leases(tmp_path, 10),)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 15 + [True]
