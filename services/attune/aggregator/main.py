"""The aggregator: event log to lake to datasets, and receipts of it, until it is told to stop."""

import argparse
import asyncio
import functools
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from attune import rpc
from attune.aggregator.build import Builder, BuildRules
from attune.aggregator.dataset_service import DatasetService
from attune.aggregator.datasets import Workshop
from attune.aggregator.dead_letters import DeadLetters, dead_letters_of
from attune.aggregator.ingest import READER, Ingest
from attune.aggregator.lake_service import LakeService
from attune.aggregator.lineage_service import LineageService
from attune.aggregator.log_service import LogService
from attune.aggregator.privacy.eraser import Eraser
from attune.aggregator.privacy.guard import Guard
from attune.aggregator.privacy.retention import Limits, Retention
from attune.aggregator.privacy.scrubber import Scrubber
from attune.aggregator.privacy.service import ErasureService
from attune.aggregator.receipt_index import ReceiptIndex, keep_up_to_date
from attune.aggregator.service import ExportService, ReceiptService
from attune.aggregator.upkeep import keep_in_shape
from attune.clock import now_unix_ms
from attune.erasures import Erasures
from attune.errors import AttuneError, DataLoss, Unavailable
from attune.eventlog import FEEDBACK, RESPONSES, EventReader, SqliteLogReader, open_when_there
from attune.eventlog.follower import Follower, SpoolFollower
from attune.eventlog.positions import refuse_shipped_spool
from attune.keys import Keys, PolicyVerifier
from attune.lake.lake import Lake
from attune.lake.lease import Leases
from attune.lake.place import Place, lake_place
from attune.lake.snapshot import open_snapshot
from attune.logs import configure_logging
from attune.metrics_page import serve_metrics
from attune.personas import Personas
from attune.personas.api_keys import KeyStore
from attune.registry.policies import Registry
from attune.runtime import announced, die_with_parent
from attune.settings import Settings, load_settings
from attune.tls import page_context, server_tls
from attune.v1 import dataset_pb2, dataset_pb2_grpc

logger = logging.getLogger("attune.aggregator")

_DRAIN_SECONDS = 10.0
_COUNT_SECONDS = 2.0
# A build that fails has read a lot by then.
_TRY_SECONDS = 10.0
_FORGETTING = "forgetting"
_STOP_SECONDS = 2.0
_MAX_MESSAGE_BYTES = 1 << 16
_SERVICES = tuple(service.full_name for service in dataset_pb2.DESCRIPTOR.services_by_name.values())


class Aggregator:
    """Ingests, and builds what is due."""

    def __init__(
        self,
        log: EventReader,
        lake: Lake,
        builder: Builder,
        personas: Personas,
        leases: Leases,
        *,
        batch_records: int,
        guard: Guard,
        eraser: Eraser | None = None,
        retention: Retention | None = None,
        dead_letters: DeadLetters | None = None,
        reached: Callable[[str], None] = lambda _step: None,
    ) -> None:
        """`reached` is told each step of ingesting that is done; crash tests strike there."""
        self._lake = lake
        self._builder = builder
        self._personas = personas
        self._leases = leases
        self._batch_records = batch_records
        self._guard = guard
        self._eraser = eraser
        self._retention = retention
        self._responses, self._feedback = (
            Ingest(
                log,
                lake,
                topic,
                batch_records=batch_records,
                guard=guard,
                dead_letters=dead_letters,
                reached=reached,
            )
            for topic in (RESPONSES, FEEDBACK)
        )
        self._counted_rows = -1
        self._counted_personas: set[tuple[str, str]] = set()
        self._next_count = 0.0
        self._next_try = 0.0

    def run(self, stopping: threading.Event, poll_seconds: float) -> None:
        """Until it is told to stop; then it takes in what the log holds. What fails is tried again."""
        failing = False
        while not stopping.is_set():
            try:
                self._guard.refresh()
                more = self.ingest()
                self.forget()
                self.build()
                failing = False
            except (AttuneError, OSError) as error:
                logger.error("aggregation failed and is tried again", extra={"reason": str(error)})
                more, failing = False, True
            if not more:
                stopping.wait(poll_seconds)
        if not failing:
            self._drain()
        self._leases.release(_FORGETTING)
        for persona in self._personas:
            self._leases.release(f"{persona.tenant}.{persona.name}")

    def forget(self) -> None:
        """People who asked for it, and what is too old; one aggregator at a time."""
        if self._eraser is None or self._retention is None or not self._leases.hold(_FORGETTING):
            return
        self._eraser.turn()
        self._retention.turn()

    def ingest(self) -> bool:
        """One batch of each topic, also when the other one's fails; whether some was full, so that there is more."""
        taken, failure = 0, None
        for topic in (self._responses, self._feedback):
            try:
                taken = max(taken, topic.poll())
            except (Unavailable, DataLoss) as error:
                failure = error
        if failure is not None:
            raise failure
        return taken >= self._batch_records

    def build(self) -> None:
        """The datasets that are due: looked for when enough may have come, and now and then for the metric."""
        rows = self._lake.feedback.count()
        personas = {(persona.tenant, persona.name) for persona in self._personas}
        if personas - self._counted_personas:
            self._counted_rows = -1  # somebody's feedback may have come before they were known
        may_be_due = rows - self._counted_rows >= self._builder.least_missing()
        if rows == self._counted_rows or not (may_be_due or time.monotonic() >= self._next_count):
            return
        if time.monotonic() < self._next_try:
            return
        self._next_try = time.monotonic() + _TRY_SECONDS
        with open_snapshot(self._lake, self._builder.rules.threads, self._builder.rules.memory_mib) as snapshot:
            ours = {persona for persona in personas if self._leases.hold(".".join(persona))}
            for tenant, name in sorted(ours):
                self._builder.build_due(snapshot, tenant, name, now_unix_ms())
        if ours == personas:  # else whoever has the others may die before they are built
            self._counted_rows, self._counted_personas = rows, personas
        self._next_count = time.monotonic() + _COUNT_SECONDS
        self._next_try = 0.0

    def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN_SECONDS
        try:
            while self.ingest() and time.monotonic() < deadline:
                pass
        except (AttuneError, OSError) as error:
            logger.error("the event log was not taken in to its end", extra={"reason": str(error)})


def open_lake(place: Place, settings: Settings) -> Lake:
    spill = None if isinstance(place, Path) else settings.data / ".spill"
    return Lake(place, history_hours=settings.lake.history_hours, spill=spill)


def open_log(settings: Settings, stopping: threading.Event) -> EventReader | None:
    """The spool, or Kafka where that is set, as soon as it is there; none when told to stop before.

    Raises FailedPrecondition for a spool whose records went on to Kafka earlier.
    """
    if not settings.kafka.servers:
        refuse_shipped_spool(settings.data / "spool")
        return open_when_there(lambda: SqliteLogReader(settings.data / "spool"), stopping)
    from attune.eventlog.cluster import Cluster
    from attune.eventlog.kafka import KafkaLogReader

    cluster = Cluster.of(settings.kafka)
    return open_when_there(lambda: KafkaLogReader(cluster, READER), stopping)


def follow_log(settings: Settings) -> Follower:
    """The same log, for somebody who looks on."""
    if not settings.kafka.servers:
        return SpoolFollower(settings.data / "spool")
    from attune.eventlog.cluster import Cluster
    from attune.eventlog.kafka_follower import KafkaFollower

    return KafkaFollower(Cluster.of(settings.kafka))


def topics_of(settings: Settings) -> Callable[[], Mapping[str, int | None]]:
    """For how long Kafka's topics keep what they have; there are none without it."""
    if not settings.kafka.servers:
        return dict
    from attune.eventlog.cluster import Cluster
    from attune.eventlog.topics import forgotten_after_ms

    return functools.partial(forgotten_after_ms, Cluster.of(settings.kafka))


def main() -> int:
    parser = argparse.ArgumentParser(description="attune's aggregator: event log to lake to datasets")
    parser.add_argument("--config", type=Path, help="settings, TOML")
    arguments = parser.parse_args()
    die_with_parent()
    try:
        settings = load_settings(arguments.config)
        configure_logging("aggregator", settings.log_level)
        asyncio.run(serve(settings))
    except AttuneError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    logger.info("aggregator stopped")
    return 0


async def serve(settings: Settings) -> None:
    """Aggregates, and answers calls, until SIGTERM or SIGINT."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    rules = settings.aggregator
    personas = Personas.open(settings.data, settings.personas_folder, settings.default_persona)
    keys = Keys.load_or_create(settings.data / "keys")
    registry = Registry(settings.data / "registry", PolicyVerifier.load_or_create(settings.data / "keys"))
    place = lake_place(settings.lake, settings.data)
    index = ReceiptIndex(settings.data, place, registry)

    tls = server_tls(settings.tls)
    access = KeyStore(settings.data / "access")
    access.open_for(rules.host)
    server = rpc.Server(access, max_message_bytes=_MAX_MESSAGE_BYTES)
    server.add(dataset_pb2_grpc.add_ReceiptServiceServicer_to_server, ReceiptService(index, keys.signing))
    server.add(dataset_pb2_grpc.add_ExportServiceServicer_to_server, ExportService(place))
    server.add(
        dataset_pb2_grpc.add_ErasureServiceServicer_to_server,
        ErasureService(Erasures(settings.data / "erasures"), keys.end_user),
    )
    workshop = Workshop(settings.data / "datasets", place, BuildRules.from_settings(rules), keys.split)
    server.add(dataset_pb2_grpc.add_DatasetServiceServicer_to_server, DatasetService(workshop, personas))
    server.add(dataset_pb2_grpc.add_LineageServiceServicer_to_server, LineageService(index))
    looking_on = LogService(lambda: follow_log(settings), Scrubber.from_settings(settings.privacy))
    server.add(dataset_pb2_grpc.add_LogServiceServicer_to_server, looking_on)
    server.add(dataset_pb2_grpc.add_LakeServiceServicer_to_server, LakeService(place, settings.lake.history_hours))
    answers = health.aio.HealthServicer()
    server.add(health_pb2_grpc.add_HealthServicer_to_server, answers)
    for name in ("", *_SERVICES):
        await answers.set(name, health_pb2.HealthCheckResponse.SERVING)
    server.add_reflection((*_SERVICES, health.SERVICE_NAME))

    grpc_port = server.bind(rules.host, rules.grpc_port, tls)
    metrics_port, page, _ = serve_metrics(rules.host, rules.metrics_port, page_context(tls))
    await server.start()
    try:
        with announced(settings.data, "aggregator", grpc=grpc_port, metrics=metrics_port):
            logger.info("aggregator started", extra={"grpc_port": grpc_port, "metrics_port": metrics_port})
            await _all_of(
                asyncio.to_thread(aggregate, settings, personas, keys, registry, index, stopping=stopping),
                asyncio.to_thread(keep_up_to_date, index, stopping, rules.poll_seconds),
                asyncio.to_thread(keep_in_shape, place, settings.lake, stopping),
                stopping=stopping,
            )
    finally:
        await answers.enter_graceful_shutdown()
        await server.stop(_STOP_SECONDS)
        page.shutdown()


def aggregate(
    settings: Settings,
    personas: Personas,
    keys: Keys,
    registry: Registry,
    index: ReceiptIndex,
    *,
    stopping: threading.Event,
) -> None:
    """Event log to lake to datasets, until it is told to stop."""
    rules = settings.aggregator
    place = lake_place(settings.lake, settings.data)
    lake = open_when_there(lambda: open_lake(place, settings), stopping)
    builder = Builder(
        settings.data / "datasets",
        BuildRules.from_settings(rules),
        keys.split,
    )
    erasures = Erasures(settings.data / "erasures")
    guard = Guard(Scrubber.from_settings(settings.privacy), erasures)
    log = open_log(settings, stopping)
    if lake is not None and log is not None:
        leases = Leases(settings.data / "leases", rules.lease_seconds)
        topics = topics_of(settings)
        eraser = Eraser(settings.data, erasures, log, lake, builder, registry, index, now_unix_ms, topics=topics)
        aggregator = Aggregator(
            log,
            lake,
            builder,
            personas,
            leases,
            batch_records=rules.batch_records,
            guard=guard,
            eraser=eraser,
            retention=Retention(Limits.from_settings(settings), lake, builder.folder, index, now_unix_ms),
            dead_letters=dead_letters_of(settings.kafka, lake),
        )
        aggregator.run(stopping, rules.poll_seconds)
        log.close()


async def _all_of(*works: Coroutine[Any, Any, None], stopping: threading.Event) -> None:
    """Until all are done; when one fails the others are told to stop, and its error is raised after their end."""
    tasks = [asyncio.create_task(work) for work in works]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    stopping.set()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


if __name__ == "__main__":
    sys.exit(main())
