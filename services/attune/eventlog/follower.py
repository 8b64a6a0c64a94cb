"""Looking on while an event log grows: no configured reader, no group, so nothing is held back for it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from attune.eventlog.log import TOPICS, Record
from attune.eventlog.sqlite import SqliteLogReader

MOST_RECORDS = 200
MOST_BYTES = 4 << 20


@dataclass
class News:
    """What came since the last look, and how many records were trimmed before they could be read."""

    records: list[Record] = field(default_factory=list)
    missed: int = 0


class Follower(Protocol):
    """One looker-on. Begins with what comes after it was opened."""

    def look(self) -> News:
        """At most MOST_RECORDS and about MOST_BYTES of each partition; does not wait long where nothing came."""

    def close(self) -> None: ...


class SpoolFollower:
    """Of the spool. Raises NotFound while no log is there."""

    def __init__(self, folder: Path) -> None:
        self._reader = SqliteLogReader(folder)
        self._log_id = ""
        self._next: dict[tuple[str, int], int] = {}
        for topic in TOPICS:
            for partition, held in self._reader.ranges(topic).items():
                self._next[topic, partition] = held.next
        self._log_id = self._reader.log_id(TOPICS[0])

    def look(self) -> News:
        news = News()
        for topic in TOPICS:
            ranges = self._reader.ranges(topic)
            if self._reader.log_id(topic) != self._log_id:  # made anew: all of it is new
                self._log_id = self._reader.log_id(topic)
                self._next = {}
            for partition, held in ranges.items():
                # A partition that was not there before is new as a whole, but for what was trimmed of it.
                offset = self._next.get((topic, partition), held.first)
                records = self._reader.read(topic, partition, offset, MOST_RECORDS, MOST_BYTES)
                following = records[-1].offset + 1 if records else max(offset, held.next)
                news.missed += following - offset - len(records)
                news.records += records
                self._next[topic, partition] = following
        return news

    def close(self) -> None:
        self._reader.close()
