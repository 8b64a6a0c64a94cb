"""What may come into the lake: nothing late of people who were erased, and the rest masked."""

from typing import Any

from attune import metrics
from attune.aggregator.privacy.scrubber import Scrubber
from attune.erasures import Erasures, digest_of

Row = dict[str, Any]


class Guard:
    """Asked by ingest for each row. For one thread; `refresh` takes up what was asked meanwhile."""

    def __init__(self, scrubber: Scrubber | None, erasures: Erasures | None = None) -> None:
        self._scrubber = scrubber
        self._erasures = erasures
        self._dropped: dict[str, int] = {}
        self.refresh()

    def refresh(self) -> None:
        if self._erasures is not None:
            self._dropped = self._erasures.dropped()

    def row(self, table: str, row: Row) -> Row | None:
        """As it may be kept; none when it may not."""
        if self._dropped and row.get("end_user"):
            until_unix_ms = self._dropped.get(digest_of(row["tenant"], row["end_user"]))
            if until_unix_ms is not None and row["created_unix_ms"] <= until_unix_ms:
                metrics.LAKE_DROPPED.labels(table).inc()
                return None
        return row if self._scrubber is None else self._scrubber.row(table, row)
