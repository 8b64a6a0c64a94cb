"""What a log in one SQLite file has to survive."""

import contextlib
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from attune.errors import DataLoss, FailedPrecondition, InvalidInput, NotFound, ResourceExhausted, Unavailable
from attune.eventlog import FEEDBACK, RESPONSES, SqliteLog, SqliteLogReader
from tests.disks import small_disk
from tests.eventlog.waiting import eventually

MIB = 1 << 20

_OPEN = """
import os, signal, sys, threading
from pathlib import Path
from attune.eventlog import RESPONSES, SqliteLog, SqliteLogReader
folder = Path(sys.argv[1])
"""
_APPEND_FOREVER = f"""{_OPEN}
log = SqliteLog(folder, max_bytes=1 << 30, readers=("aggregator",), feedback_share=0.1)
number = 0
def tell(future, number):
    os.write(1, f"{{future.result()}} {{number}}\\n".encode())
while True:
    futures = []
    for _ in range(20):
        futures.append((log.append(RESPONSES, b"", b"%d" % number + b"x" * 2000), number))
        number += 1
    for future, told in futures:
        tell(future, told)
"""
_HOLD = f"""{_OPEN}
log = SqliteLog(folder, max_bytes=1 << 30, readers=("aggregator",), feedback_share=0.1)
print("open", flush=True)
signal.pause()
"""
_READ_AND_FREEZE = f"""{_OPEN}
reader = SqliteLogReader(folder)
cursor = reader._connection.execute("SELECT * FROM records")
cursor.fetchone()
print("reading", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def start(script: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)


def open_log(folder: Path, max_bytes: int = 64 * MIB) -> SqliteLog:
    return SqliteLog(folder, max_bytes=max_bytes, readers=("aggregator",), feedback_share=0.1)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    opened = open_log(tmp_path / "spool")
    yield opened
    opened.close()


def test_a_second_writer_is_refused_in_this_process_and_in_another(log: SqliteLog, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="another process writes the event log"):
        open_log(tmp_path / "spool")
    with start(_HOLD, tmp_path / "spool") as other:
        assert other.wait(20) == 1


def test_the_lock_goes_with_a_killed_writer_even_when_a_forked_child_lives_on(tmp_path: Path) -> None:
    script = f"""{_OPEN}
log = SqliteLog(folder, max_bytes=1 << 30, readers=("aggregator",), feedback_share=0.1)
if os.fork() == 0:
    print(os.getpid(), flush=True)
signal.pause()
"""
    with start(script, tmp_path / "spool") as writer:
        assert writer.stdout is not None
        child = int(writer.stdout.readline())
        try:
            writer.kill()
            writer.wait()
            open_log(tmp_path / "spool").close()
        finally:
            os.kill(child, signal.SIGKILL)


def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(tmp_path: Path) -> None:
    for _ in range(3):
        folder = tmp_path / "spool"
        before = 0
        if folder.exists():
            reader = SqliteLogReader(folder)
            before = reader.range(RESPONSES, 0).next
            reader.close()
        with start(_APPEND_FOREVER, folder) as writer:
            assert writer.stdout is not None
            told = [writer.stdout.readline() for _ in range(200)]
            writer.kill()
            told += writer.stdout.readlines()
        reader = SqliteLogReader(folder)
        held = {
            record.offset: int(record.payload.rstrip(b"x"))
            for record in reader.read(RESPONSES, 0, before, 1 << 20, 1 << 30)
        }
        reader.close()
        assert sorted(held) == list(range(before, before + len(held)))
        whole = [line.split() for line in told if line.endswith("\n")]
        assert whole
        assert all(held[int(offset)] == int(number) for offset, number in whole)
        open_log(folder).close()


def test_a_frozen_reader_does_not_hold_up_the_writer(log: SqliteLog, tmp_path: Path) -> None:
    for _ in range(100):
        log.append(RESPONSES, b"", b"x" * 100).result(10)
    with start(_READ_AND_FREEZE, tmp_path / "spool") as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        for _ in range(100):
            log.append(RESPONSES, b"", b"x" * 100).result(2)
        reader.kill()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "emptied", "page"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "spool"
    log = open_log(folder)
    for _ in range(200):
        log.append(RESPONSES, b"", b"x" * 500)
    log.close()
    file = folder / "events.sqlite"
    content = bytearray(file.read_bytes())
    if damage == "garbage":
        content[:] = os.urandom(len(content))
    elif damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "emptied":
        content.clear()
    else:
        content[3 * 4096 : 12 * 4096] = os.urandom(9 * 4096)
    file.write_bytes(content)
    with pytest.raises(DataLoss, match="damaged"):
        open_log(folder)
    if damage != "page":  # a reader looks at what it reads, the writer at everything
        with pytest.raises(DataLoss):
            SqliteLogReader(folder)
    file.unlink()
    open_log(folder).close()


def test_a_log_of_another_format_is_refused(tmp_path: Path) -> None:
    open_log(tmp_path).close()
    with sqlite3.connect(tmp_path / "events.sqlite") as connection:
        connection.execute("UPDATE meta SET value = '9' WHERE name = 'format'")
    connection.close()
    with pytest.raises(DataLoss, match="format 9; this version reads 2"):
        open_log(tmp_path)


def test_a_crash_while_it_was_made_leaves_nothing_half_made(tmp_path: Path) -> None:
    (tmp_path / "events.sqlite.draft").write_bytes(b"half")
    (tmp_path / "events.sqlite.draft-wal").write_bytes(b"half")
    with pytest.raises(NotFound):
        SqliteLogReader(tmp_path)
    open_log(tmp_path).close()
    assert not list(tmp_path.glob("*.draft*"))


def test_a_reader_opens_what_a_killed_writer_left(tmp_path: Path) -> None:
    with start(_APPEND_FOREVER, tmp_path / "spool") as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
    reader = SqliteLogReader(tmp_path / "spool")
    assert reader.read(RESPONSES, 0, 0, 1, 1)
    reader.close()


def test_positions_that_cannot_be_read_hold_back_trimming_until_the_reader_commits(
    log: SqliteLog, tmp_path: Path
) -> None:
    log.append(RESPONSES, b"", b"x").result(10)
    log.commit("aggregator", {})
    file = tmp_path / "spool" / "positions" / "aggregator.json"
    file.write_text("{")
    assert log.positions("aggregator") == {}
    file.write_text(json.dumps({"log_id": "another", "positions": [[RESPONSES, 0, 1]]}))
    assert log.positions("aggregator") == {}
    log.commit("aggregator", {(RESPONSES, 0): 1})
    eventually(lambda: log.range(RESPONSES, 0).first == 1)


def test_positions_that_are_no_file_for_a_while_hold_back_trimming_only_so_long(log: SqliteLog, tmp_path: Path) -> None:
    log.append(RESPONSES, b"", b"x").result(10)
    file = tmp_path / "spool" / "positions" / "aggregator.json"
    file.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        log.depth()  # as the thread that looks after the readers sees it, several times a second
    before = REGISTRY.get_sample_value("attune_event_log_bytes")
    log.append(RESPONSES, b"", b"x" * 1000).result(10)
    eventually(lambda: REGISTRY.get_sample_value("attune_event_log_bytes") != before)
    file.rmdir()
    log.commit("aggregator", {(RESPONSES, 0): 1})
    eventually(lambda: log.range(RESPONSES, 0).first == 1)


def test_a_position_beyond_the_end_moves_no_offset(log: SqliteLog, tmp_path: Path) -> None:
    log.append(RESPONSES, b"", b"x").result(10)
    log.commit("aggregator", {(RESPONSES, 0): 1})
    file = tmp_path / "spool" / "positions" / "aggregator.json"
    file.write_text(file.read_text().replace(", 1]", ", 1000]"))
    eventually(lambda: log.range(RESPONSES, 0).first == 1)
    assert log.append(RESPONSES, b"", b"y").result(10) == 1
    eventually(lambda: log.range(RESPONSES, 0).first == 2)
    assert log.append(RESPONSES, b"", b"z").result(10) == 2


def test_the_disk_space_of_trimmed_records_is_given_back(log: SqliteLog, tmp_path: Path) -> None:
    file = tmp_path / "spool" / "events.sqlite"
    futures = [log.append(RESPONSES, b"", b"x" * 10_000) for _ in range(4000)]
    following = futures[-1].result(20) + 1
    eventually(lambda: file.stat().st_size > 30 * MIB)
    log.commit("aggregator", {(RESPONSES, 0): following})
    eventually(lambda: file.stat().st_size < 20 * MIB, 30)
    log.append(RESPONSES, b"", b"x").result(10)


def test_the_space_of_trimmed_records_is_used_again(log: SqliteLog, tmp_path: Path) -> None:
    for _ in range(5):
        futures = [log.append(RESPONSES, b"", b"x" * 10_000) for _ in range(400)]
        following = futures[-1].result(10) + 1
        log.commit("aggregator", {(RESPONSES, 0): following})
        eventually(lambda following=following: log.range(RESPONSES, 0).first == following)  # type: ignore[misc]
    assert sum(file.stat().st_size for file in (tmp_path / "spool").iterdir() if file.is_file()) < 20 * MIB


def test_an_append_that_was_cancelled_in_time_is_not_written(log: SqliteLog) -> None:
    futures = [log.append(RESPONSES, b"", b"%d" % number) for number in range(500)]
    cancelled = {number for number, future in enumerate(futures) if future.cancel()}
    written = {number for number in range(500) if number not in cancelled and futures[number].result(10) >= 0}
    records = log.read(RESPONSES, 0, 0, 1000, MIB)
    assert {int(record.payload) for record in records} == written


def test_a_reservation_of_another_kind_is_refused(log: SqliteLog) -> None:
    class Foreign:
        def release(self) -> None: ...
        def __enter__(self) -> "Foreign":
            return self

        def __exit__(self, *_: object) -> None: ...

    with pytest.raises(InvalidInput):
        log.append(RESPONSES, b"", b"", Foreign())


def test_a_full_disk_fails_what_cannot_be_written_and_the_log_recovers(tmp_path: Path) -> None:
    """The file size limit of a process is a full disk for it: the write is cut short and refused by the kernel."""
    script = f"""{_OPEN}
import resource
from attune.errors import AttuneError, Unavailable
log = SqliteLog(folder, max_bytes=1 << 30, readers=("aggregator",), feedback_share=0.1)
with log.reserve(300_000, RESPONSES) as reservation:
    assert log.append(RESPONSES, b"", b"before").result(10) == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    failure = log.append(RESPONSES, b"", b"x" * 300_000, reservation).exception(10)
    assert isinstance(failure, Unavailable) and failure.retry_after_seconds, failure
    refusal = None
    try:
        log.reserve(10, RESPONSES)
    except Unavailable as error:
        refusal = error
    assert refusal is not None
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.append(RESPONSES, b"", b"x" * 300_000, reservation).result(10) == 1
assert log.append(RESPONSES, b"", b"after").result(10) == 2
log.close()
reader = SqliteLogReader(folder)
assert [len(record.payload) for record in reader.read(RESPONSES, 0, 0, 10, 1 << 20)] == [6, 300_000, 5]
print("recovered", flush=True)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    with start(script, tmp_path / "spool") as writer:
        assert writer.stdout is not None
        assert writer.stdout.read() == "recovered\n"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "32m") as folder:
        yield folder


def test_a_disk_that_others_fill_refuses_new_requests_and_lets_the_running_ones_finish(disk: Path) -> None:
    log = open_log(disk / "spool", max_bytes=1 << 30)
    try:
        running = [log.reserve(50_000, RESPONSES) for _ in range(20)]
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * (16 * MIB))
        with pytest.raises(ResourceExhausted, match="disk is full") as refusal:
            log.reserve(50_000, RESPONSES)
        assert refusal.value.retry_after_seconds
        for reservation in running:
            log.append(RESPONSES, b"", os.urandom(50_000), reservation).result(10)
        ballast.unlink()
        log.reserve(50_000, RESPONSES).release()
    finally:
        log.close()


def test_a_read_only_disk_refuses_and_recovers(disk: Path) -> None:
    log = open_log(disk / "spool", max_bytes=1 << 30)
    try:
        log.append(FEEDBACK, b"", b"x").result(10)
        # A file system with files open for writing cannot turn read-only at once; a bind mount over it can.
        subprocess.run(["mount", "--bind", disk, disk], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", disk], check=True)
        with pytest.raises(Unavailable, match="read-only"):
            log.append(FEEDBACK, b"", b"y")
        subprocess.run(["umount", "-l", disk], check=True)
        assert log.append(FEEDBACK, b"", b"z").result(10) >= 1
    finally:
        log.close()


def test_a_reader_goes_on_over_the_writers_deaths_and_restarts(tmp_path: Path) -> None:
    open_log(tmp_path / "spool").close()
    reader = SqliteLogReader(tmp_path / "spool")
    for round_number in range(3):
        before = reader.range(RESPONSES, 0).next
        with start(_APPEND_FOREVER, tmp_path / "spool") as writer:
            assert writer.stdout is not None
            offset = int(writer.stdout.readline().split()[0])
            assert offset == before
            assert reader.read(RESPONSES, 0, offset, 1, 1)[0].offset == offset
            writer.kill()
        if round_number:
            open_log(tmp_path / "spool").close()
        assert reader.read(RESPONSES, 0, offset, 1, 1)[0].offset == offset
        reader.commit("aggregator", {(RESPONSES, 0): offset})
    reader.close()


def leave_on_a_free_page(file: Path, statement: str) -> None:
    """As SQLite does where it is not built to overwrite what it deletes."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute(statement)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"Quokkaflower" in file.read_bytes()


def test_what_is_erased_leaves_its_place_and_nothing_else(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path, max_bytes=64 * MIB, readers=("aggregator",), feedback_share=0.1)
    for number in range(2000):
        word = b"Quokkaflower" if number % 500 == 7 else b"others"
        log.append(RESPONSES, b"key-of-" + word, word * 20)
    log.append(FEEDBACK, b"key", b"Quokkaflower of feedback").result(10)
    used = log._space.used_bytes
    leave_on_a_free_page(
        tmp_path / "events.sqlite", "DELETE FROM records WHERE topic = 'attune.responses' AND offset < 8"
    )

    erased = log.erase(lambda record: b"Quokkaflower" in record.payload).result(30)

    assert erased == 4
    for file in tmp_path.glob("events.sqlite*"):
        assert b"Quokkaflower" not in file.read_bytes()
    records = log.read(RESPONSES, 0, 500, 10, MIB)
    assert [(one.offset, one.key, one.payload) for one in records[7:9]] == [
        (507, b"", b""),
        (508, b"key-of-others", b"others" * 20),
    ]
    assert log._space.used_bytes < used
    assert log.append(RESPONSES, b"", b"more").result(10) == 2000
    log.close()
    with pytest.raises(Unavailable):
        log.erase(lambda _record: True)


def test_while_somebody_reads_an_erasure_is_to_be_tried_again(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path, max_bytes=MIB, readers=("aggregator",), feedback_share=0.1)
    log.append(RESPONSES, b"", b"Quokkaflower").result(10)
    with contextlib.closing(sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM records").fetchall()
        with pytest.raises(Unavailable):
            log.erase(lambda _record: True).result(60)
        reader.execute("COMMIT")
    log.erase(lambda _record: True).result(30)
    assert all(b"Quokkaflower" not in file.read_bytes() for file in tmp_path.glob("events.sqlite*"))
    log.close()
