"""The aggregator: event log to lake to datasets, until it is told to stop."""

import argparse
import logging
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from attune import metrics
from attune.aggregator.build import Builder, BuildRules
from attune.aggregator.ingest import Ingest
from attune.errors import AttuneError, NotFound
from attune.eventlog import FEEDBACK, RESPONSES, SqliteLogReader
from attune.keys import Keys
from attune.lake.lake import Lake
from attune.lake.snapshot import open_snapshot
from attune.logs import configure_logging
from attune.personas import Persona, load_personas
from attune.runtime import die_with_parent, stop_on_signals, write_endpoints
from attune.settings import load_settings

logger = logging.getLogger("attune.aggregator")

_DRAIN_SECONDS = 10.0
_OPEN_SECONDS = 0.2
_COUNT_SECONDS = 2.0


class Aggregator:
    """Ingests, and builds what is due."""

    def __init__(
        self, log: SqliteLogReader, lake: Lake, builder: Builder, personas: Iterable[Persona], batch_records: int
    ) -> None:
        self._lake = lake
        self._builder = builder
        self._personas = tuple(personas)
        self._batch_records = batch_records
        self._responses = Ingest(log, lake, RESPONSES, batch_records=batch_records)
        self._feedback = Ingest(log, lake, FEEDBACK, batch_records=batch_records)
        self._counted_rows = -1
        self._next_count = 0.0

    def run(self, stopping: threading.Event, poll_seconds: float) -> None:
        """Until it is told to stop; then it takes in what the log holds. What fails is tried again."""
        while not stopping.is_set():
            try:
                more = self.ingest()
                self.build()
            except (AttuneError, OSError) as error:
                logger.error("aggregation failed and is tried again", extra={"reason": str(error)})
                more = False
            if not more:
                stopping.wait(poll_seconds)
        self._drain()

    def ingest(self) -> bool:
        """One batch of each topic; whether some batch was full, so that there is surely more."""
        taken = [self._responses.poll(), self._feedback.poll()]
        return max(taken) >= self._batch_records

    def build(self) -> None:
        """The datasets that are due: looked for when enough may have come, and now and then for the metric."""
        rows = self._lake.feedback.count()
        may_be_due = rows - self._counted_rows >= self._builder.least_missing()
        if rows == self._counted_rows or not (may_be_due or time.monotonic() >= self._next_count):
            return
        with open_snapshot(self._lake) as snapshot:
            for persona in self._personas:
                self._builder.build_if_due(snapshot, persona.tenant, persona.name, int(time.time() * 1000))
        self._counted_rows = rows
        self._next_count = time.monotonic() + _COUNT_SECONDS

    def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN_SECONDS
        try:
            while self.ingest() and time.monotonic() < deadline:
                pass
        except (AttuneError, OSError) as error:
            logger.error("the event log was not taken in to its end", extra={"reason": str(error)})


def open_log(folder: Path, stopping: threading.Event) -> SqliteLogReader | None:
    """Waits until inference has made the event log; none when told to stop before."""
    while not stopping.is_set():
        try:
            return SqliteLogReader(folder)
        except NotFound:
            stopping.wait(_OPEN_SECONDS)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="attune's aggregator: event log to lake to datasets")
    parser.add_argument("--config", type=Path, help="settings, TOML")
    arguments = parser.parse_args()
    die_with_parent()
    try:
        settings = load_settings(arguments.config)
        configure_logging("aggregator", settings.log_level)
        rules = settings.aggregator
        stopping = stop_on_signals()
        metrics_port, page, _ = metrics.serve_metrics(rules.host, rules.metrics_port)
        keys = Keys.load_or_create(settings.data / "keys")
        personas = load_personas(settings.personas_folder)
        lake = Lake(settings.data / "lake")
        builder = Builder(
            settings.data / "datasets",
            BuildRules(rules.build_feedback, rules.window_days, rules.heldout_share),
            keys.split,
        )
        write_endpoints(settings.data, "aggregator", metrics=metrics_port)
        logger.info("aggregator started", extra={"metrics_port": metrics_port, "personas": sorted(personas)})
        log = open_log(settings.data / "spool", stopping)
        if log is not None:
            Aggregator(log, lake, builder, personas.values(), rules.batch_records).run(stopping, rules.poll_seconds)
            log.close()
        page.shutdown()
    except AttuneError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    logger.info("aggregator stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
