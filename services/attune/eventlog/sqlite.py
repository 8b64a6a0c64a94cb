"""The event log in one SQLite file: the local spool, and the whole event log of a one-machine set-up.

    events.sqlite          WAL, synchronous=FULL; made under another name and renamed, so that it is whole or absent
    writer.lock            flock: one process appends
    positions/<reader>     JSON, replaced atomically; what each reader needs no longer

Only the writer's process writes to the database: readers open it read-only and keep their positions in files of their
own. So a reader that is frozen half-way through a commit cannot hold the write lock against chat, and no two processes
ever checkpoint the WAL at once.
"""

import contextlib
import logging
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from attune import metrics
from attune.clock import now_unix_ms
from attune.errors import AttuneError, DataLoss, InvalidInput, NotFound, ResourceExhausted, Unavailable
from attune.eventlog.lock import WriterLock
from attune.eventlog.log import TOPICS, Depth, Range, Record, Reservation
from attune.eventlog.positions import read_positions, write_positions
from attune.eventlog.space import RECORD_OVERHEAD_BYTES, Space, SpaceReservation, record_bytes
from attune.files import sync
from attune.ids import check_name

logger = logging.getLogger(__name__)

_FORMAT = "2"
_DATABASE = "events.sqlite"
_BUSY_SECONDS = 5.0
_RETRY_AFTER_SECONDS = 1.0
_TICK_SECONDS = 0.2
_GROUP_RECORDS = 512
_GROUP_BYTES = 16 << 20
_TRIM_RECORDS = 1000
_VACUUM_PAGES = 512
_FREE_PAGES_KEPT = 2048
# A record is written to the WAL and then to the database; beside that the WAL itself has to fit.
_DISK_COPIES = 2
_DISK_MARGIN_BYTES = 16 << 20
_WAL_LIMIT_BYTES = 64 << 20
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE partitions (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, first_offset INTEGER NOT NULL, PRIMARY KEY (topic, partition)
) WITHOUT ROWID;
CREATE TABLE records (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    appended_unix_ms INTEGER NOT NULL, key BLOB NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (topic, partition, offset)
);
"""

# What was trimmed is gone, and what is left begins at the partition's first offset, without a gap.
_RANGES = """
SELECT partition, first_offset, coalesce(
    (SELECT max(r.offset) + 1 FROM records r WHERE r.topic = p.topic AND r.partition = p.partition), first_offset)
FROM partitions p WHERE topic = ?
"""


class SqliteLogReader:
    """The reading side, for any number of processes. Thread-safe.

    Raises NotFound while no log is there, DataLoss when the file is not a sound one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        file = folder / _DATABASE
        if not file.exists():
            raise NotFound(f"no event log in {folder} yet")
        self._lock = threading.Lock()
        self._open()

    def log_id(self, topic: str) -> str:
        del topic  # one file, one log
        return self._log_id

    def ranges(self, topic: str) -> Mapping[int, Range]:
        self._open_anew()
        return {partition: Range(first, end) for partition, first, end in self._rows(_RANGES, (topic,))}

    def ends(self, topic: str) -> Mapping[int, int]:
        return {partition: held.next for partition, held in self.ranges(topic).items()}

    def range(self, topic: str, partition: int) -> Range:
        ranges = self.ranges(topic)
        if partition not in ranges:
            raise NotFound(f"the event log has no topic {topic} with a partition {partition}")
        return ranges[partition]

    def read(self, topic: str, partition: int, offset: int, limit_records: int, limit_bytes: int) -> list[Record]:
        records: list[Record] = []
        taken_bytes = 0
        with self._lock, _reported(self._folder), contextlib.closing(self._connection.cursor()) as cursor:
            cursor.execute(
                "SELECT offset, key, payload FROM records WHERE topic = ? AND partition = ? AND offset >= ?"
                " ORDER BY offset LIMIT ?",
                (topic, partition, offset, limit_records),
            )
            for at, key, payload in cursor:
                taken_bytes += len(key) + len(payload)
                if records and taken_bytes > limit_bytes:
                    break
                records.append(Record(topic, partition, at, key, payload))
        return records

    def commit(self, reader: str, positions: Mapping[tuple[str, int], int]) -> None:
        for (topic, partition), offset in positions.items():
            end = self.range(topic, partition).next
            if not 0 <= offset <= end:
                raise InvalidInput(f"position {offset} of {topic}/{partition} is outside 0 to {end}")
        write_positions(self._folder, reader, self._log_id, {**self.positions(reader), **positions})

    def positions(self, reader: str) -> dict[tuple[str, int], int]:
        return read_positions(self._folder, reader, self._log_id)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _open(self) -> None:
        file = self._folder / _DATABASE
        number = _file_number(file)
        with _reported(self._folder):
            self._connection = _connect(file, "ro")
            self._log_id = _read_log_id(self._connection, self._folder)
        self._file_number = number

    def _open_anew(self) -> None:
        """Where the log was made anew: what was opened is a file without a name, to which nobody will write."""
        if _file_number(self._folder / _DATABASE) in (self._file_number, None):
            return
        with self._lock:
            self._connection.close()
            self._open()
        logger.warning("the event log was made anew", extra={"log_id": self._log_id})

    def _rows(self, query: str, arguments: tuple[object, ...]) -> list[tuple[int, ...]]:
        with self._lock, _reported(self._folder):
            return self._connection.execute(query, arguments).fetchall()


class SqliteLog:
    """The appending side (and a reader): one process at a time, enforced by a lock.

    One thread does all writing. It takes everything that waits, writes it in one statement with one fsync, and only
    then resolves the futures; the slower the disk, the larger the groups. Between groups it trims what every configured
    reader has behind it; how far they are another thread finds out. For each statement, and for each file that it looks
    at, a thread gives up the interpreter, and waits to have it again until a busy event loop lets go: so the one that
    acknowledges does as few of them as it can.

    Raises FailedPrecondition when another process appends to this log, DataLoss when the file is not a sound one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        readers: Sequence[str],
        feedback_share: float,
        max_record_bytes: int | None = None,
        topics: Sequence[str] = TOPICS,
    ) -> None:
        """`max_record_bytes` is what whoever carries the records on can take; larger ones are not admitted."""
        self._folder = folder
        self._max_record_bytes = max_record_bytes
        self._readers = tuple(check_name(reader, "reader") for reader in readers)
        self._space = Space(max_bytes, feedback_share)
        folder.mkdir(parents=True, exist_ok=True)
        self._writer_lock = WriterLock(folder)
        try:
            _create(folder)
            self._reader = SqliteLogReader(folder)
            with _reported(folder):
                self._writer: sqlite3.Connection | None = _open_writer(folder, topics)
                self._first, self._next = _offsets(self._writer, topics)
                held = self._writer.execute(
                    "SELECT coalesce(sum(length(key) + length(payload) + ?), 0) FROM records", (RECORD_OVERHEAD_BYTES,)
                ).fetchone()[0]
        except BaseException:
            self._writer_lock.release()
            raise
        self._space.hold(held)
        self._queue: queue.SimpleQueue[_Append | None] = queue.SimpleQueue()
        self._wishes: queue.SimpleQueue[tuple[Callable[[Record], bool], Future[int]]] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self._fault: AttuneError | None = None
        self._behind = dict(self._first)
        self._pages_freed = True
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"event-log-{name}", daemon=True)
            for name, target in (("writer", self._run), ("keeper", self._look_after))
        ]
        for thread in self._threads:
            thread.start()

    def log_id(self, topic: str) -> str:
        return self._reader.log_id(topic)

    def ranges(self, topic: str) -> Mapping[int, Range]:
        return self._reader.ranges(topic)

    def ends(self, topic: str) -> Mapping[int, int]:
        return self._reader.ends(topic)

    def range(self, topic: str, partition: int) -> Range:
        return self._reader.range(topic, partition)

    def read(self, topic: str, partition: int, offset: int, limit_records: int, limit_bytes: int) -> list[Record]:
        return self._reader.read(topic, partition, offset, limit_records, limit_bytes)

    def commit(self, reader: str, positions: Mapping[tuple[str, int], int]) -> None:
        self._reader.commit(reader, positions)

    def positions(self, reader: str) -> dict[tuple[str, int], int]:
        return self._reader.positions(reader)

    def reserve(self, nbytes: int, topic: str) -> SpaceReservation:
        """Looks at the disk as well: what was promised must still fit when others fill it.

        Raises InvalidInput for a record that nobody could carry on.
        """
        try:
            self._check_record(nbytes)
            if self._fault is not None:
                raise self._fault
            self._check_disk(nbytes)
            return self._space.reserve(nbytes + RECORD_OVERHEAD_BYTES, topic)
        except AttuneError:
            metrics.EVENT_LOG_REFUSALS.labels(topic).inc()
            raise

    def append(self, topic: str, key: bytes, payload: bytes, reservation: Reservation | None = None) -> "Future[int]":
        if topic not in self._next:
            raise NotFound(f"the event log has no topic {topic}")
        size = record_bytes(key, payload)
        self._check_record(len(key) + len(payload))
        owned = reservation is None
        if reservation is None:
            reservation = self.reserve(len(key) + len(payload), topic)
        elif not isinstance(reservation, SpaceReservation):
            raise InvalidInput("the reservation is of another event log")
        self._space.grow(reservation, size)
        append = _Append(topic, key, payload, size, reservation, owned, Future())
        with self._gate:
            if self._closed:
                raise Unavailable("the event log is closed")
            self._queue.put(append)
        return append.future

    def depth(self) -> dict[str, Depth]:
        return {topic: self._depth(topic, self._trimmable(topic)) for topic in self._next}

    def erase(self, matches: Callable[[Record], bool]) -> "Future[int]":
        """Empties the records that match, and leaves nothing of them in the file; says how many there were.

        Their places stay: a reader finds an empty payload there. Appending waits meanwhile. The future fails with
        Unavailable when the file could not be rewritten; then it is to be called again.
        """
        wish: tuple[Callable[[Record], bool], Future[int]] = matches, Future()
        with self._gate:
            if self._closed:
                raise Unavailable("the event log is closed")
            self._wishes.put(wish)
        return wish[1]

    def close(self) -> None:
        """Writes what was appended before, then lets go of the log; a second call does nothing."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._reader.close()
        if self._writer is not None:  # the last connection to close empties the WAL into the database
            self._writer.close()
            self._writer = None
        self._writer_lock.release()

    def _run(self) -> None:
        next_tick = time.monotonic()
        try:
            while True:
                group, last = self._take_group(max(0.0, next_tick - time.monotonic()))
                if group:
                    self._write(group)
                if last:
                    return
                if time.monotonic() >= next_tick:
                    self._tick()
                    self._grant_wishes()
                    next_tick = time.monotonic() + _TICK_SECONDS
        finally:
            with self._gate:
                self._closed = True
            self._fail_waiting()

    def _take_group(self, wait_seconds: float) -> tuple[list["_Append"], bool]:
        """Everything that waits, up to a bound, and whether the log was closed behind it."""
        group: list[_Append] = []
        group_bytes = 0
        with contextlib.suppress(queue.Empty):
            append = self._queue.get(timeout=wait_seconds) if wait_seconds else self._queue.get_nowait()
            while True:
                if append is None:
                    return group, True
                if append.take_up():
                    group.append(append)
                    group_bytes += append.size
                if len(group) >= _GROUP_RECORDS or group_bytes >= _GROUP_BYTES:
                    break
                append = self._queue.get_nowait()
        return group, False

    def _write(self, group: list["_Append"]) -> None:
        values: list[object] = []
        written_unix_ms = now_unix_ms()
        try:
            with metrics.EVENT_LOG_COMMIT_SECONDS.time(), self._writing() as writer:
                next_offsets = dict(self._next)
                for append in group:
                    append.offset = next_offsets[append.topic]
                    next_offsets[append.topic] += 1
                    values += (append.topic, append.offset, written_unix_ms, append.key, append.payload)
                places = ", ".join(["(?, 0, ?, ?, ?, ?)"] * len(group))
                writer.execute(f"INSERT INTO records VALUES {places}", values)
        except AttuneError as fault:
            for append in group:
                append.fail(fault)
            return
        self._next = next_offsets
        for append in group:
            self._space.settle(append.reservation, append.size)
            append.future.set_result(append.offset)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Several statements of the writer's, all or none."""
        with self._writing() as writer:
            writer.execute("BEGIN IMMEDIATE")
            yield writer
            writer.execute("COMMIT")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """The writer's connection; when writing fails the log refuses reservations until it succeeds.

        After a failure the connection is thrown away and opened anew: what the file holds decides, not memory.
        """
        try:
            with _reported(self._folder):
                if self._writer is None:
                    self._writer = _open_writer(self._folder, tuple(self._next))
                    self._first, self._next = _offsets(self._writer, self._next)
                yield self._writer
        except AttuneError as fault:
            if self._fault is None:
                logger.error("event log cannot be written", extra={"reason": fault.message})
            self._fault = fault
            if self._writer is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._writer.close()
                self._writer = None
            raise
        if self._fault is not None:
            logger.info("event log can be written again")
            self._fault = None

    def _grant_wishes(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                matches, erased = self._wishes.get_nowait()
                try:
                    erased.set_result(self._erase(matches))
                except AttuneError as fault:
                    erased.set_exception(fault)

    def _erase(self, matches: Callable[[Record], bool]) -> int:
        """What was trimmed before may still stand on pages that are free, and what was emptied in the WAL."""
        erased = 0
        for topic in self._next:
            at, end = self.range(topic, 0).first, self.range(topic, 0).next
            while at < end and (records := self.read(topic, 0, at, _TRIM_RECORDS, _GROUP_BYTES)):
                at = records[-1].offset + 1
                found = [record for record in records if record.payload and matches(record)]
                if found:
                    self._empty(found)
                    erased += len(found)
        with self._reported_writer() as writer:
            writer.execute("VACUUM")
            busy = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise Unavailable("somebody reads the event log; its old pages cannot go yet", retry_after_seconds=1)
        return erased

    def _empty(self, records: Sequence[Record]) -> None:
        with self._transaction() as writer:
            writer.executemany(
                "UPDATE records SET key = x'', payload = x'' WHERE topic = ? AND partition = 0 AND offset = ?",
                [(record.topic, record.offset) for record in records],
            )
        self._space.hold(-sum(len(record.key) + len(record.payload) for record in records))

    @contextlib.contextmanager
    def _reported_writer(self) -> Iterator[sqlite3.Connection]:
        with _reported(self._folder):
            if self._writer is None:
                raise Unavailable("the event log cannot be written now", retry_after_seconds=_RETRY_AFTER_SECONDS)
            yield self._writer

    def _tick(self) -> None:
        with contextlib.suppress(AttuneError):
            if self._fault is not None:
                with self._transaction() as writer:
                    writer.execute("UPDATE meta SET value = value + 1 WHERE name = 'probes'")
            for topic in self._next:
                self._trim(topic)
            self._give_back_pages()

    def _look_after(self) -> None:
        """Finds out how far the readers are, for the writer and for whoever watches."""
        while not self._closing.wait(_TICK_SECONDS):
            # What cannot be looked at now can be in a moment; until then nothing more is trimmed.
            with contextlib.suppress(AttuneError, OSError):
                metrics.EVENT_LOG_BYTES.set(self._space.used_bytes)
                for topic in self._behind:
                    position = self._behind[topic] = self._trimmable(topic)
                    depth = self._depth(topic, position)
                    metrics.EVENT_LOG_DEPTH.labels(topic).set(depth.records)
                    metrics.EVENT_LOG_OLDEST_AGE.labels(topic).set(depth.oldest_age_seconds)

    def _trim(self, topic: str) -> None:
        """Deletes what every configured reader has behind it, a small step at a time while nobody waits."""
        end = min(self._behind[topic], self._next[topic])
        while self._first[topic] < end:
            step = min(self._first[topic] + _TRIM_RECORDS, end)
            bounds = (topic, step)
            with self._transaction() as writer:
                freed = writer.execute(
                    "SELECT coalesce(sum(length(key) + length(payload) + ?), 0) FROM records"
                    " WHERE topic = ? AND partition = 0 AND offset < ?",
                    (RECORD_OVERHEAD_BYTES, *bounds),
                ).fetchone()[0]
                writer.execute("DELETE FROM records WHERE topic = ? AND partition = 0 AND offset < ?", bounds)
                writer.execute("UPDATE partitions SET first_offset = ? WHERE topic = ? AND partition = 0", bounds[::-1])
            self._space.hold(-freed)
            self._first[topic] = step
            self._pages_freed = True
            if not self._queue.empty():
                return

    def _depth(self, topic: str, position: int) -> Depth:
        """What lies behind a position."""
        rows = self._reader._rows(
            "SELECT appended_unix_ms FROM records WHERE topic = ? AND partition = 0 AND offset >= ?"
            " ORDER BY offset LIMIT 1",
            (topic, position),
        )
        oldest_age_seconds = max(0.0, time.time() - rows[0][0] / 1000) if rows else 0.0
        return Depth(max(0, self._next[topic] - position), oldest_age_seconds)

    def _trimmable(self, topic: str) -> int:
        """The first offset that some configured reader still needs."""
        return min((self.positions(reader).get((topic, 0), 0) for reader in self._readers), default=0)

    def _give_back_pages(self) -> None:
        """Free pages are used again by later records; only a large surplus goes back to the disk."""
        if self._writer is None or not self._pages_freed or not self._queue.empty():
            return
        with _reported(self._folder):
            self._pages_freed = self._writer.execute("PRAGMA freelist_count").fetchone()[0] > _FREE_PAGES_KEPT
            if self._pages_freed:
                # Not execute(): it steps a statement without columns once, which frees a single page.
                self._writer.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")

    def _check_record(self, nbytes: int) -> None:
        if self._max_record_bytes is not None and nbytes > self._max_record_bytes:
            raise InvalidInput(
                f"what is to be kept of this may take {nbytes} bytes; a record of the event log has at most "
                f"{self._max_record_bytes}"
            )

    def _check_disk(self, nbytes: int) -> None:
        disk = os.statvfs(self._folder)
        if disk.f_flag & os.ST_RDONLY:
            raise Unavailable("the event log's disk is read-only", retry_after_seconds=_RETRY_AFTER_SECONDS)
        needed = _DISK_COPIES * (self._space.promised_bytes + nbytes) + _DISK_MARGIN_BYTES
        if disk.f_bavail * disk.f_frsize < needed:
            raise ResourceExhausted(
                f"the event log's disk is full: {disk.f_bavail * disk.f_frsize} bytes free, {needed} needed",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )

    def _fail_waiting(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                append = self._queue.get_nowait()
                if append is not None and append.take_up():
                    append.fail(Unavailable("the event log is closed"))
        with contextlib.suppress(queue.Empty):
            while True:
                self._wishes.get_nowait()[1].set_exception(Unavailable("the event log is closed"))


@dataclass
class _Append:
    """A record on its way to the disk."""

    topic: str
    key: bytes
    payload: bytes
    size: int
    reservation: SpaceReservation
    owned: bool
    future: "Future[int]"
    offset: int = -1

    def take_up(self) -> bool:
        """False when the caller has given up meanwhile; afterwards it cannot any more."""
        if self.future.set_running_or_notify_cancel():
            return True
        self._let_go()
        return False

    def fail(self, fault: AttuneError) -> None:
        self._let_go()
        self.future.set_exception(fault)

    def _let_go(self) -> None:
        """The caller's reservation stays the caller's; one that was made on the way is given back."""
        if self.owned:
            self.reservation.release()


@contextlib.contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """Turns SQLite's errors into ours: DataLoss for a damaged file, Unavailable for everything that may pass."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in _DAMAGED:
            raise DataLoss(f"the event log in {folder} is damaged: {error}") from error
        raise Unavailable(
            f"the event log cannot be used now: {error}", retry_after_seconds=_RETRY_AFTER_SECONDS
        ) from error


def _create(folder: Path) -> None:
    """Makes the file if there is none; a crash on the way leaves a draft that the next start replaces."""
    file = folder / _DATABASE
    if file.exists():
        return
    draft = folder / f"{_DATABASE}.draft"
    for leftover in folder.glob(f"{_DATABASE}.draft*"):
        leftover.unlink()
    with _reported(folder), contextlib.closing(_connect(draft, "rwc")) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(_SCHEMA)
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [("format", _FORMAT), ("log_id", secrets.token_hex(8)), ("probes", "0")],
        )
    sync(draft)
    draft.rename(file)
    sync(folder)
    sync(folder.parent)


def _open_writer(folder: Path, topics: Iterable[str]) -> sqlite3.Connection:
    connection = _connect(folder / _DATABASE, "rw")
    try:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            f"journal_size_limit = {_WAL_LIMIT_BYTES}",
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")
        _read_log_id(connection, folder)
        findings = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if findings != "ok":
            raise DataLoss(f"the event log in {folder} is damaged: {findings}")
        connection.executemany("INSERT OR IGNORE INTO partitions VALUES (?, 0, 0)", [(topic,) for topic in topics])
    except BaseException:
        connection.close()
        raise
    return connection


def _offsets(writer: sqlite3.Connection, topics: Iterable[str]) -> tuple[dict[str, int], dict[str, int]]:
    """The first and the next offset of each topic."""
    rows = {topic: writer.execute(_RANGES, (topic,)).fetchone() for topic in topics}
    return {topic: first for topic, (_, first, _) in rows.items()}, {topic: end for topic, (*_, end) in rows.items()}


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    """Autocommit: a transaction is begun where one is meant, and a read ends with its cursor."""
    return sqlite3.connect(
        f"{file.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        # One that is kept keeps what it was last given: megabytes, and what was to be erased.
        cached_statements=0,
    )


def _file_number(file: Path) -> tuple[int, int] | None:
    try:
        state = file.stat()
    except FileNotFoundError:
        return None
    return state.st_dev, state.st_ino


def _read_log_id(connection: sqlite3.Connection, folder: Path) -> str:
    meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    if meta.get("format") != _FORMAT or not meta.get("log_id"):
        raise DataLoss(f"the event log in {folder} has format {meta.get('format')}; this version reads {_FORMAT}")
    log_id: str = meta["log_id"]
    return log_id
