"""What may come into the lake: nothing late of people who were erased, and the rest masked."""

import pyarrow as pa

from attune import metrics
from attune.aggregator.privacy.scrubber import Scrubber
from attune.erasures import Erasures, digest_of

_OF_WHOM = ("tenant", "end_user", "created_unix_ms")


class Guard:
    """Asked by ingest for each batch. For one thread; `refresh` takes up what was asked meanwhile."""

    def __init__(self, scrubber: Scrubber | None, erasures: Erasures | None = None) -> None:
        self._scrubber = scrubber
        self._erasures = erasures
        self._dropped: dict[str, int] = {}
        self.refresh()

    def refresh(self) -> None:
        if self._erasures is not None:
            self._dropped = self._erasures.dropped()

    def rows(self, table: str, rows: pa.Table) -> pa.Table:
        """Those that may be kept, as they may be."""
        if self._dropped:
            stay = [not self._is_erased(*of) for of in zip(*(rows[name].to_pylist() for name in _OF_WHOM), strict=True)]
            metrics.LAKE_DROPPED.labels(table).inc(stay.count(False))
            rows = rows.filter(pa.array(stay, pa.bool_()))
        return rows if self._scrubber is None else self._scrubber.rows(table, rows)

    def _is_erased(self, tenant: str, end_user: str, created_unix_ms: int) -> bool:
        return bool(end_user) and created_unix_ms <= self._dropped.get(digest_of(tenant, end_user), 0)
