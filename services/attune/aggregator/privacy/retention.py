"""What is older than a tenant wants it kept leaves the lake, the datasets and the receipts."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from attune import metrics
from attune.aggregator.receipt_index import ReceiptIndex
from attune.errors import DataLoss
from attune.lake.dataset import Dataset, list_datasets
from attune.lake.erased import erase_dataset, finish_erasing
from attune.lake.erasing import delete_rows
from attune.lake.lake import Lake
from attune.settings import Settings

logger = logging.getLogger(__name__)

_MS_PER_DAY = 86_400_000
_LOOK_SECONDS = 900.0


@dataclass(frozen=True)
class Limits:
    """How many days each tenant's is kept; `others` is for those that are not named. None: for ever."""

    days: Mapping[str, float | None]
    others: float | None

    @classmethod
    def from_settings(cls, settings: Settings) -> "Limits":
        others = settings.privacy.retention_days
        named = {name: tenant.retention_days for name, tenant in settings.tenants.items()}
        return cls({name: others if days is None else days for name, days in named.items()}, others)

    def expired(self, now_unix_ms: int) -> pc.Expression | None:
        """Which rows of a table are too old; none when all are kept."""
        found: list[pc.Expression] = []
        for tenant, days in self.days.items():
            if days is not None:
                found.append((pc.field("tenant") == tenant) & _before(now_unix_ms, days))
        if self.others is not None:
            unnamed = pc.invert(pc.field("tenant").isin(pa.array(list(self.days), pa.string())))
            found.append(unnamed & _before(now_unix_ms, self.others))
        if not found:
            return None
        expression = found[0]
        for one in found[1:]:
            expression = expression | one
        return expression

    def cutoff_unix_ms(self, tenant: str, now_unix_ms: int) -> int | None:
        days = self.days.get(tenant, self.others)
        return None if days is None else now_unix_ms - int(days * _MS_PER_DAY)


@dataclass(eq=False)
class Retention:
    """For the thread that ingests: it deletes what is over now and then, in commits of their own."""

    limits: Limits
    lake: Lake
    datasets: Path
    index: ReceiptIndex
    now_unix_ms: Callable[[], int]
    clock: Callable[[], float] = time.monotonic
    _next_seconds: float = 0.0

    def turn(self) -> None:
        """Does nothing between two looks. Raises Unavailable; the next turn goes on."""
        if self.clock() < self._next_seconds:
            return
        self.enforce()
        self._next_seconds = self.clock() + _LOOK_SECONDS

    def enforce(self) -> None:
        """A dataset goes when its oldest example is too old; the next one is built when it is due."""
        now_unix_ms = self.now_unix_ms()
        expired = self.limits.expired(now_unix_ms)
        if expired is None:
            return
        finish_erasing(self.datasets)
        for dataset in list_datasets(self.datasets):
            cutoff = self.limits.cutoff_unix_ms(dataset.manifest.tenant, now_unix_ms)
            if cutoff is not None and _oldest(dataset) < cutoff:
                erase_dataset(dataset, by_request=False, now_unix_ms=now_unix_ms)
                logger.info("dataset expired", extra={"dataset_id": dataset.manifest.dataset_id})
        for table in (self.lake.responses, self.lake.feedback):
            gone = table.read_where(expired, ["event_id"])["event_id"].to_pylist()
            if gone:
                delete_rows(table.place, expired)
                table.reload()
                table.sync()
                self.index.erase(gone, gone)
                metrics.EXPIRED.labels(table.name).inc(len(gone))
                logger.info("rows expired", extra={"table": table.name, "rows": len(gone)})


def _before(now_unix_ms: int, days: float) -> pc.Expression:
    return pc.field("created_unix_ms") < pa.scalar(now_unix_ms - int(days * _MS_PER_DAY), pa.int64())


def _oldest(dataset: Dataset) -> int:
    """Of its examples; of one that cannot be read, when it was built."""
    oldest = dataset.manifest.created_unix_ms
    try:
        for table in dataset.files(["created_unix_ms"]):
            least = pc.min(table["created_unix_ms"]).as_py()
            oldest = oldest if least is None else min(oldest, least)
    except (DataLoss, KeyError, pa.ArrowException):
        pass
    return oldest
