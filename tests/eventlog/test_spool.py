"""What the appending side must do: room, order, durability."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attune.errors import InvalidInput, NotFound, ResourceExhausted, Unavailable
from attune.eventlog import FEEDBACK, RESPONSES, EventLog, EventReader, SqliteLog, SqliteLogReader
from tests.eventlog.waiting import eventually

OpenLog = Callable[..., EventLog]
MIB = 1 << 20


@pytest.fixture
def open_log(tmp_path: Path) -> Iterator[OpenLog]:
    opened: list[SqliteLog] = []

    def open_it(max_bytes: int = 64 * MIB, readers: tuple[str, ...] = ("aggregator",)) -> SqliteLog:
        opened.append(SqliteLog(tmp_path / "spool", max_bytes=max_bytes, readers=readers, feedback_share=0.25))
        return opened[-1]

    yield open_it
    for log in opened:
        log.close()


@pytest.fixture
def open_reader(tmp_path: Path) -> Iterator[Callable[[], EventReader]]:
    opened: list[SqliteLogReader] = []

    def open_it() -> SqliteLogReader:
        opened.append(SqliteLogReader(tmp_path / "spool"))
        return opened[-1]

    yield open_it
    for reader in opened:
        reader.close()


def append(log: EventLog, topic: str, *payloads: bytes) -> list[int]:
    futures = [log.append(topic, b"key", payload) for payload in payloads]
    return [future.result(10) for future in futures]


def test_records_come_back_in_order_under_dense_offsets(open_log: OpenLog) -> None:
    log = open_log()
    assert append(log, RESPONSES, b"a", b"b", b"c") == [0, 1, 2]
    assert append(log, FEEDBACK, b"vote") == [0]
    records = log.read(RESPONSES, 0, 1, 10, MIB)
    assert [(r.topic, r.partition, r.offset, r.key, r.payload) for r in records] == [
        (RESPONSES, 0, 1, b"key", b"b"),
        (RESPONSES, 0, 2, b"key", b"c"),
    ]


def test_many_threads_append_and_every_record_is_there_once(open_log: OpenLog) -> None:
    log = open_log()
    payloads = [f"{n}".encode() for n in range(2000)]
    with ThreadPoolExecutor(8) as pool:
        offsets = list(pool.map(lambda payload: log.append(RESPONSES, b"", payload).result(10), payloads))
    assert sorted(offsets) == list(range(2000))
    by_offset = {record.offset: record.payload for record in log.read(RESPONSES, 0, 0, 5000, 64 * MIB)}
    assert [by_offset[offset] for offset in offsets] == payloads


def test_records_are_there_after_it_was_closed_and_opened(open_log: OpenLog) -> None:
    log = open_log()
    append(log, RESPONSES, b"a", b"b")
    log.close()
    again = open_log()
    assert again.log_id(RESPONSES) == log.log_id(RESPONSES)
    assert append(again, RESPONSES, b"c") == [2]
    assert [record.payload for record in again.read(RESPONSES, 0, 0, 10, MIB)] == [b"a", b"b", b"c"]


def test_trimming_waits_for_the_slowest_configured_reader(
    open_log: OpenLog, open_reader: Callable[[], EventReader]
) -> None:
    log = open_log(readers=("aggregator", "shipper"))
    append(log, RESPONSES, *[b"x"] * 10)
    reader = open_reader()
    reader.commit("aggregator", {(RESPONSES, 0): 8})
    reader.commit("onlooker", {(RESPONSES, 0): 10})
    reader.commit("shipper", {(RESPONSES, 0): 3})
    eventually(lambda: log.range(RESPONSES, 0).first == 3)
    assert log.depth()[RESPONSES].records == 7
    assert reader.positions("aggregator") == {(RESPONSES, 0): 8}
    reader.commit("shipper", {(RESPONSES, 0): 9})
    eventually(lambda: reader.range(RESPONSES, 0).first == 8)
    assert log.read(RESPONSES, 0, 0, 10, MIB)[0].offset == 8


def test_offsets_are_never_used_again_even_after_everything_was_trimmed(open_log: OpenLog) -> None:
    log = open_log()
    append(log, RESPONSES, b"a", b"b")
    log.commit("aggregator", {(RESPONSES, 0): 2})
    eventually(lambda: log.range(RESPONSES, 0).first == 2)
    assert log.range(RESPONSES, 0).next == 2
    log.close()
    assert append(open_log(), RESPONSES, b"c") == [2]


def test_a_position_outside_the_log_is_refused(open_log: OpenLog) -> None:
    log = open_log()
    with pytest.raises(InvalidInput, match=r"position 1 of attune\.responses/0 is outside 0 to 0"):
        log.commit("aggregator", {(RESPONSES, 0): 1})
    with pytest.raises(InvalidInput):
        log.commit("../aggregator", {})


def test_an_unknown_topic_is_refused(open_log: OpenLog) -> None:
    log = open_log()
    with pytest.raises(NotFound):
        log.append("attune.other", b"", b"")
    with pytest.raises(NotFound):
        log.range("attune.other", 0)


def test_a_full_log_refuses_new_requests_and_lets_the_running_ones_finish(open_log: OpenLog) -> None:
    log = open_log(max_bytes=100_000)
    running = log.reserve(30_000, RESPONSES)
    append(log, RESPONSES, b"x" * 40_000)
    with pytest.raises(ResourceExhausted) as refusal:
        log.reserve(10_000, RESPONSES)
    assert refusal.value.retry_after_seconds
    with pytest.raises(ResourceExhausted):
        log.append(RESPONSES, b"", b"x" * 10_000)
    assert log.append(RESPONSES, b"", b"y" * 30_000, running).result(10) == 1
    running.release()
    with pytest.raises(ResourceExhausted):
        log.reserve(10_000, RESPONSES)


def test_a_share_of_the_space_is_kept_for_feedback(open_log: OpenLog) -> None:
    log = open_log(max_bytes=100_000)
    append(log, RESPONSES, b"x" * 70_000)
    with pytest.raises(ResourceExhausted):
        log.reserve(10_000, RESPONSES)
    append(log, FEEDBACK, b"x" * 10_000)
    with pytest.raises(ResourceExhausted):
        append(log, FEEDBACK, b"x" * 20_000)


def test_space_comes_back_when_a_reservation_is_released_or_records_are_trimmed(open_log: OpenLog) -> None:
    log = open_log(max_bytes=100_000)
    with log.reserve(70_000, RESPONSES), pytest.raises(ResourceExhausted):
        log.reserve(10_000, RESPONSES)
    append(log, RESPONSES, b"x" * 70_000)
    log.commit("aggregator", {(RESPONSES, 0): 1})
    eventually(lambda: log.range(RESPONSES, 0).first == 1)
    log.reserve(70_000, RESPONSES).release()


def test_what_a_small_record_leaves_of_its_reservation_is_free_again(open_log: OpenLog) -> None:
    log = open_log(max_bytes=100_000)
    for _ in range(10):
        reservation = log.reserve(60_000, RESPONSES)
        log.append(RESPONSES, b"", b"small", reservation).result(10)


def test_what_was_held_before_a_restart_still_counts(open_log: OpenLog) -> None:
    log = open_log(max_bytes=100_000)
    append(log, RESPONSES, b"x" * 70_000)
    log.close()
    with pytest.raises(ResourceExhausted):
        open_log(max_bytes=100_000).reserve(10_000, RESPONSES)


def test_closing_writes_what_was_appended_and_refuses_what_comes_after(open_log: OpenLog) -> None:
    log = open_log()
    futures = [log.append(RESPONSES, b"", b"x") for _ in range(100)]
    log.close()
    assert [future.result(0) for future in futures] == list(range(100))
    with pytest.raises(Unavailable):
        log.append(RESPONSES, b"", b"x")
    log.close()


def test_depth_says_how_many_wait_and_for_how_long(open_log: OpenLog) -> None:
    log = open_log()
    assert log.depth()[RESPONSES].records == 0
    append(log, RESPONSES, b"a", b"b")
    depth = log.depth()[RESPONSES]
    assert depth.records == 2
    assert 0 <= depth.oldest_age_seconds < 10


def test_a_record_that_nobody_could_carry_on_is_not_admitted(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path, max_bytes=64 * MIB, readers=("shipper",), feedback_share=0.25, max_record_bytes=1000)
    try:
        log.reserve(1000, RESPONSES).release()
        with pytest.raises(InvalidInput, match="may take 1001 bytes; a record of the event log has at most 1000"):
            log.reserve(1001, RESPONSES)
        with pytest.raises(InvalidInput):
            log.append(RESPONSES, b"key", b"x" * 998)
        assert log.range(RESPONSES, 0).next == 0
    finally:
        log.close()
