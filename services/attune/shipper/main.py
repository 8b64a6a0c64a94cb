"""The shipper: spool to Kafka, beside each inference, until it is told to stop.

A process of its own, because chat is to notice nothing of it: neither its computing nor its end.
"""

import argparse
import logging
import sys
import threading
import time
from pathlib import Path

from attune.errors import AttuneError, FailedPrecondition
from attune.eventlog import SqliteLogReader, open_when_there
from attune.eventlog.cluster import Cluster
from attune.eventlog.refused import RefusedRecords
from attune.logs import configure_logging
from attune.metrics_page import serve_metrics
from attune.runtime import announced, die_with_parent, stop_on_signals
from attune.settings import load_settings
from attune.shipper.shipper import Shipper
from attune.tls import page_context, server_tls

logger = logging.getLogger("attune.shipper")

_IDLE_SECONDS = 0.05
_FAILED_SECONDS = 0.5
_DRAIN_SECONDS = 10.0


def ship_from(folder: Path, cluster: Cluster, batch_records: int, stopping: threading.Event) -> None:
    """Until it is told to stop, once there is a spool."""
    spool = open_when_there(lambda: SqliteLogReader(folder), stopping)
    if spool is None:
        return
    shipper = Shipper(spool, cluster, RefusedRecords(folder), batch_records=batch_records, stopping=stopping)
    ship(shipper, stopping)
    shipper.close()
    spool.close()


def ship(shipper: Shipper, stopping: threading.Event) -> None:
    """Until it is told to stop; then what the spool still holds, if Kafka took records until then."""
    said = ""
    while not stopping.is_set():
        try:
            done = shipper.poll()
            if said:
                logger.info("Kafka takes records again")
            said, pause_seconds = "", 0 if done else _IDLE_SECONDS
        except (AttuneError, OSError) as error:
            what = str(error).partition(":")[0]  # the details change while a broker comes back
            if what != said:
                logger.error("records wait in the spool", extra={"reason": str(error)})
            said, pause_seconds = what, _FAILED_SECONDS
        stopping.wait(pause_seconds)
    if said:
        return
    deadline = time.monotonic() + _DRAIN_SECONDS
    try:
        while time.monotonic() < deadline and shipper.poll():
            pass
    except (AttuneError, OSError) as error:
        logger.error("records stay in the spool", extra={"reason": str(error)})


def main() -> int:
    parser = argparse.ArgumentParser(description="attune's shipper: spool to Kafka")
    parser.add_argument("--config", type=Path, help="settings, TOML")
    arguments = parser.parse_args()
    die_with_parent()
    try:
        settings = load_settings(arguments.config)
        configure_logging("shipper", settings.log_level)
        if not settings.kafka.servers:
            raise FailedPrecondition("kafka.servers is empty: there is nowhere to ship to")
        cluster = Cluster.of(settings.kafka)
        stopping = stop_on_signals()
        metrics_port, page, _ = serve_metrics(
            settings.shipper.host, settings.shipper.metrics_port, page_context(server_tls(settings.tls))
        )
        with announced(settings.data, "shipper", metrics=metrics_port):
            logger.info("shipper started", extra={"metrics_port": metrics_port, "servers": settings.kafka.servers})
            ship_from(settings.data / "spool", cluster, settings.shipper.batch_records, stopping)
        page.shutdown()
    except AttuneError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    logger.info("shipper stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
