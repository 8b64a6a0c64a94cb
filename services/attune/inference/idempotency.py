"""Ids that clients give their requests: the first answer is kept, and given again, for a stated time."""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from attune.errors import Aborted, AlreadyExists, Unavailable

logger = logging.getLogger(__name__)

Name = tuple[str, str, str]
"""Tenant, kind of request, and the client's own id."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    client_id TEXT NOT NULL,
    digest BLOB NOT NULL,
    answer BLOB NOT NULL,
    kept_unix_seconds REAL NOT NULL,
    PRIMARY KEY (tenant, kind, client_id)
) WITHOUT ROWID
"""
_MOST_WAITING = 10_000
_MOST_IN_ONE_COMMIT = 500
_TIDY_SECONDS = 60.0
_CLOSE_SECONDS = 10.0
# Answers that nobody waits for are committed together.
_GATHER_SECONDS = 0.02
# An erasure rewrites the file.
_BUSY_SECONDS = 30.0


@dataclass
class _Held:
    """A request that runs, or one whose answer is not written down yet or may never be."""

    digest: bytes
    answer: bytes | None = None
    kept_unix_seconds: float = 0.0


@dataclass(frozen=True)
class _Row:
    name: Name
    digest: bytes
    answer: bytes
    written: Future[None]


class Idempotency:
    """One replica's store. For one event loop; a thread of its own commits, many answers at once.

    An answer is given again for `keep_hours`, over restarts too; of more than `most_answers` the oldest go first. What
    may not be stored is held in memory alone. A damaged file is begun anew: what it held is only remembered requests.
    """

    def __init__(self, file: Path, *, keep_hours: float, most_answers: int) -> None:
        self._keep_seconds = keep_hours * 3600
        self._most_answers = most_answers
        self._held: dict[Name, _Held] = {}
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._reader = _open_whole(file)
        # Beside rows: a future is resolved when all before it are written, None ends the thread.
        self._rows: queue.Queue[_Row | Future[None] | None] = queue.Queue(_MOST_WAITING)
        self._hurry = threading.Event()
        self._writer = threading.Thread(target=self._write, args=(_open(file),), name="idempotency")
        self._writer.start()

    def begin(self, name: Name, digest: bytes) -> bytes | None:
        """The answer that was given under this id, if there is one; else the id is held until `release`.

        Raises AlreadyExists when the id was used for something else, and Aborted while the first request runs.
        """
        held = self._held.get(name)
        if held is not None and held.answer is not None and held.kept_unix_seconds < time.time() - self._keep_seconds:
            held = self._held.pop(name) and None
        found = (held.digest, held.answer) if held else self._stored(name)
        if found is None:
            self._held[name] = _Held(digest)
            return None
        if found[0] != digest:
            raise AlreadyExists("this request id was used before, for another request")
        if found[1] is None:
            raise Aborted("the first request with this id still runs", retry_after_seconds=1)
        return found[1]

    async def finish(self, name: Name, answer: bytes, *, durable: bool) -> None:
        """Keeps the answer; durably, before this returns, unless it may not be written. Raises Unavailable."""
        if durable:
            written = self.finish_soon(name, answer)
            self._hurry.set()
            await asyncio.shield(asyncio.wrap_future(written))
        else:
            self._forget_held()
            self._hold(name, answer)

    def finish_soon(self, name: Name, answer: bytes) -> Future[None]:
        """Keeps the answer in memory at once and in the file within moments: a crash before that forgets it.

        Nobody has to wait for the future. It fails with Unavailable; then the id is free again.
        """
        held = self._hold(name, answer)
        written: Future[None] = Future()
        loop = asyncio.get_running_loop()
        written.add_done_callback(lambda _: loop.call_soon_threadsafe(self._held.pop, name, None))
        try:
            self._rows.put_nowait(_Row(name, held.digest, answer, written))
        except queue.Full:
            written.set_exception(Unavailable("too many answers wait to be kept", retry_after_seconds=1))
        return written

    def release(self, name: Name) -> None:
        """The request has ended, well or not; without an answer its id is free again."""
        held = self._held.get(name)
        if held is not None and held.answer is None:
            del self._held[name]

    def forget(self, matches: Callable[[Name, bytes], bool]) -> None:
        """Drops answers that are held in memory alone."""
        for name, held in list(self._held.items()):
            if held.answer is not None and matches(name, held.answer):
                del self._held[name]

    def erase(self, matches: Callable[[Name, bytes], bool]) -> int:
        """Deletes answers, with nothing of them left in the file; says how many. Blocks; for a thread of its own.

        Raises Unavailable when the file could not be rewritten; then it is to be called again.
        """
        try:
            self._flush()
            with contextlib.closing(_open(self._file)) as connection:
                rows = connection.execute("SELECT tenant, kind, client_id, answer FROM answers")
                names = [
                    (tenant, kind, name) for tenant, kind, name, answer in rows if matches((tenant, kind, name), answer)
                ]
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("DELETE FROM answers WHERE tenant = ? AND kind = ? AND client_id = ?", names)
                connection.execute("COMMIT")
                # What was deleted before, by anybody, stands on free pages and in the WAL until now.
                connection.execute("VACUUM")
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except (sqlite3.Error, TimeoutError) as error:
            raise Unavailable(f"answers under request ids cannot be erased now: {error}") from None
        if busy:
            raise Unavailable("answers under request ids are being read; their old pages cannot go yet")
        return len(names)

    def close(self) -> None:
        """Writes what waits."""
        self._rows.put(None)
        self._hurry.set()
        self._writer.join(_CLOSE_SECONDS)
        self._reader.close()

    def _stored(self, name: Name) -> tuple[bytes, bytes | None] | None:
        try:
            row: tuple[bytes, bytes] | None = self._reader.execute(
                "SELECT digest, answer FROM answers WHERE tenant = ? AND kind = ? AND client_id = ?"
                " AND kept_unix_seconds >= ?",
                (*name, time.time() - self._keep_seconds),
            ).fetchone()
        except sqlite3.Error as error:
            raise Unavailable("whether this request id was used before cannot be read now") from error
        return row

    def _flush(self) -> None:
        """Returns when what was kept before is in the file; blocks."""
        flushed: Future[None] = Future()
        self._rows.put(flushed)
        self._hurry.set()
        flushed.result(_BUSY_SECONDS)

    def _hold(self, name: Name, answer: bytes) -> _Held:
        held = self._held[name]
        held.answer, held.kept_unix_seconds = answer, time.time()
        return held

    def _forget_held(self) -> None:
        """Room for one more answer that is held in memory alone."""
        answered = [name for name, held in self._held.items() if held.answer is not None]
        for name in answered[: max(0, len(answered) - self._most_answers + 1)]:
            del self._held[name]

    def _write(self, connection: sqlite3.Connection) -> None:
        tidied = 0.0
        while True:
            taken = self._take()
            rows = [one for one in taken if isinstance(one, _Row)]
            waiting = [one.written if isinstance(one, _Row) else one for one in taken if one is not None]
            try:
                if rows:
                    # One statement: between two the thread would wait for the event loop to let it go on.
                    places = ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(rows))
                    values = [value for row in rows for value in (*row.name, row.digest, row.answer, time.time())]
                    connection.execute(f"INSERT OR REPLACE INTO answers VALUES {places}", values)
            except sqlite3.Error as error:
                logger.error("answers not kept", extra={"error": type(error).__name__})
                for future in waiting:
                    future.set_exception(Unavailable("the answer could not be kept under its request id"))
            else:
                for future in waiting:
                    future.set_result(None)
            if time.monotonic() - tidied > _TIDY_SECONDS:
                tidied = time.monotonic()
                with contextlib.suppress(sqlite3.Error):  # the next time, then
                    self._tidy(connection)
            if None in taken:
                connection.close()
                return

    def _take(self) -> "list[_Row | Future[None] | None]":
        """What waits, and, unless somebody waits for it, what comes within moments."""
        taken = [self._rows.get()]
        self._hurry.wait(_GATHER_SECONDS)
        self._hurry.clear()
        with contextlib.suppress(queue.Empty):
            while len(taken) < _MOST_IN_ONE_COMMIT:
                taken.append(self._rows.get_nowait())
        return taken

    def _tidy(self, connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM answers WHERE kept_unix_seconds < ?", (time.time() - self._keep_seconds,))
        connection.execute(
            "DELETE FROM answers WHERE kept_unix_seconds <= (SELECT kept_unix_seconds FROM answers"
            " ORDER BY kept_unix_seconds DESC LIMIT 1 OFFSET ?)",
            (self._most_answers,),
        )


def _open_whole(file: Path) -> sqlite3.Connection:
    """Opens the store, or another in place of one that is damaged; raises Unavailable where neither can be."""
    try:
        connection = _open(file)
        connection.execute(_SCHEMA)
        if connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",):
            return connection
        connection.close()
    except sqlite3.OperationalError as error:  # the disk, the rights, somebody else
        raise Unavailable(f"{file} cannot be opened: {error}") from None
    except sqlite3.DatabaseError:
        pass
    logger.error("the store of request ids is damaged; it is begun anew", extra={"file": file.name})
    for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
        file.with_name(name).unlink(missing_ok=True)
    connection = _open(file)
    connection.execute(_SCHEMA)
    return connection


def _open(file: Path) -> sqlite3.Connection:
    # No statement is kept: it would keep what it was last given.
    connection = sqlite3.connect(
        file, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=0
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection
