"""Records that Kafka refused for good: kept beside the spool, so that nothing acknowledged is lost."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from attune.clock import now_unix_ms
from attune.errors import Unavailable
from attune.eventlog.log import Record

_DATABASE = "refused.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS refused (
    log_id TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    refused_unix_ms INTEGER NOT NULL, reason TEXT NOT NULL, key BLOB NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (log_id, topic, partition, offset)
)
"""


@dataclass(frozen=True)
class RefusedRecord:
    """A record, where it stood in the spool, and why it is not in Kafka."""

    log_id: str
    record: Record
    reason: str
    refused_unix_ms: int


class RefusedRecords:
    """A table in the spool's folder."""

    def __init__(self, spool: Path) -> None:
        self._file = spool / _DATABASE

    def add(self, log_id: str, record: Record, reason: str) -> None:
        """Durable when it returns; the same record a second time changes nothing."""
        with self._opened() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO refused VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    log_id,
                    record.topic,
                    record.partition,
                    record.offset,
                    now_unix_ms(),
                    reason,
                    record.key,
                    record.payload,
                ),
            )

    def read(self) -> Iterator[RefusedRecord]:
        """In the order in which they were refused."""
        if not self._file.exists():
            return
        with self._opened() as connection:
            rows = connection.execute(
                "SELECT log_id, topic, partition, offset, key, payload, reason, refused_unix_ms FROM refused"
                " ORDER BY refused_unix_ms, topic, partition, offset"
            )
            for log_id, topic, partition, offset, key, payload, reason, refused_unix_ms in rows:
                yield RefusedRecord(log_id, Record(topic, partition, offset, key, payload), reason, refused_unix_ms)

    def erase(self, matches: Callable[[Record], bool]) -> int:
        """Deletes records, with nothing of them left in the file; says how many. Raises Unavailable."""
        theirs = [one for one in self.read() if matches(one.record)]
        if not self._file.exists():
            return 0
        with self._opened() as connection:
            connection.executemany(
                "DELETE FROM refused WHERE log_id = ? AND topic = ? AND partition = ? AND offset = ?",
                [(one.log_id, one.record.topic, one.record.partition, one.record.offset) for one in theirs],
            )
            connection.execute("VACUUM")
            if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise Unavailable(f"{self._file} is being read; its old pages cannot go yet", retry_after_seconds=1)
        return len(theirs)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(self._file, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(_SCHEMA)
                yield connection
        except sqlite3.Error as error:
            raise Unavailable(f"{self._file} cannot be used now: {error}") from error
