"""The processes of a run. Each is the real thing, with a trip wire where its faults are to strike."""

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from attune.aggregator.build import Builder, BuildRules
from attune.aggregator.ingest import READER
from attune.aggregator.main import Aggregator
from attune.aggregator.privacy.guard import Guard
from attune.errors import AttuneError, ResourceExhausted
from attune.eventlog import EventReader, SqliteLog, SqliteLogReader, open_when_there
from attune.eventlog.cluster import Cluster
from attune.eventlog.kafka import KafkaLogReader
from attune.eventlog.positions import SHIPPER
from attune.eventlog.refused import RefusedRecords
from attune.lake.lake import Lake
from attune.lake.lease import Leases
from attune.personas.store import Personas
from attune.rehearsal.soak.events import PERSONA, in_order_of_sending, key_of
from attune.rehearsal.soak.schedule import DISK_FULL, FREEZE, KILL, STEPS, Schedule
from attune.runtime import die_with_parent, stop_on_signals
from attune.shipper.main import ship
from attune.shipper.shipper import Shipper

SPLIT_KEY = b"soak" * 8
RULES = BuildRules(build_feedback=25, window_days=3650, heldout_share=0.2)

LEASE_SECONDS = 0.7
"""Less than a frozen part stays so: its rival builds meanwhile."""

_SPOOL_BYTES = 32 << 20
_GROUP = 10
_PAUSE_SECONDS = 0.02
_POLL_SECONDS = 0.05
_SESSION_SECONDS = 1.5
_ACKNOWLEDGED_SECONDS = 20.0
_HOG_BYTES = 64 << 10
_OPEN_SECONDS = 0.2


@dataclass(frozen=True)
class Site:
    """Where a run takes place; `disk`, for the lake and the datasets, may be a small one that can be filled."""

    folder: Path
    disk: Path
    cluster: Cluster | None

    @property
    def lake(self) -> Path:
        return self.disk / "lake"

    @property
    def datasets(self) -> Path:
        return self.disk / "datasets"

    @property
    def source(self) -> Path:
        """The personas that the data folder begins with."""
        return self.folder / "source"

    @property
    def told(self) -> Path:
        """What the writer was told: one id a line, once acknowledged (an empty line for bytes that are no event)."""
        return self.folder / "told"

    @property
    def hog(self) -> Path:
        """What fills the disk, until whoever watches removes it."""
        return self.disk / "hog"

    @property
    def over(self) -> Path:
        """There from when nothing is to strike any more."""
        return self.folder / "over"

    def struck(self, number: int) -> Path:
        """There from when the schedule's fault of this number struck."""
        return self.folder / f"struck-{number}"


def writer(site: Site, schedule: Schedule) -> None:
    """Sends every event; after a kill again those that were not acknowledged."""
    _enter(site, "writer")
    told = Counter(site.told.read_text().splitlines()) if site.told.exists() else Counter()
    log = SqliteLog(
        site.folder / "spool",
        max_bytes=_SPOOL_BYTES,
        readers=(READER if site.cluster is None else SHIPPER,),
        feedback_share=0.1,
    )
    with site.told.open("a") as ledger:
        group: list[tuple[str, Future[int]]] = []
        for event_id, topic, payload in in_order_of_sending(schedule.seed, schedule.responses):
            if told[event_id] > 0:
                told[event_id] -= 1
                continue
            group.append((event_id, _append(log, topic, payload)))
            if len(group) == _GROUP:
                _note(ledger.fileno(), group)
                time.sleep(_PAUSE_SECONDS)
        _note(ledger.fileno(), group)
    log.close()


def shipper(site: Site, schedule: Schedule) -> None:
    """Spool to Kafka."""
    _enter(site, "shipper")
    assert site.cluster is not None
    stopping = stop_on_signals()
    spool = open_when_there(lambda: SqliteLogReader(site.folder / "spool"), stopping)
    if spool is not None:
        refused = RefusedRecords(site.folder / "spool")
        wire = _trip_wire(site, schedule, "shipper")
        ship(Shipper(spool, site.cluster, refused, batch_records=schedule.batch_records, reached=wire), stopping)


def aggregator(site: Site, schedule: Schedule) -> None:
    """Event log to lake to datasets."""
    _enter(site, "aggregator")
    stopping = stop_on_signals()
    log = _open_log(site, stopping)
    if log is None:
        return
    wire = _trip_wire(site, schedule, "aggregator")
    made = _make_aggregator(site, schedule, log, wire, stopping)
    if made is not None:
        made.run(stopping, _POLL_SECONDS)
    log.close()


def _make_aggregator(
    site: Site, schedule: Schedule, log: EventReader, wire: Callable[[str], None], stopping: threading.Event
) -> Aggregator | None:
    """As a supervisor does it: what cannot be opened now, on a full disk say, is tried again."""
    while not stopping.is_set():
        try:
            builder = Builder(site.datasets, RULES, SPLIT_KEY, reached=wire)
            personas = Personas.open(site.folder, site.source, PERSONA)
            return Aggregator(
                log,
                Lake(site.lake),
                builder,
                personas,
                Leases(site.folder / "leases", LEASE_SECONDS),
                batch_records=schedule.batch_records,
                guard=Guard(None),
                reached=wire,
            )
        except (AttuneError, OSError) as error:
            logging.getLogger(__name__).error("not opened", extra={"reason": str(error)})
            stopping.wait(_OPEN_SECONDS)
    return None


def _open_log(site: Site, stopping: threading.Event) -> EventReader | None:
    cluster = site.cluster
    if cluster is None:
        return open_when_there(lambda: SqliteLogReader(site.folder / "spool"), stopping)
    return open_when_there(lambda: KafkaLogReader(cluster, READER, session_seconds=_SESSION_SECONDS), stopping)


def _enter(site: Site, part: str) -> None:
    """A process of its own group, whose words go to a file."""
    die_with_parent()
    os.setsid()
    descriptor = os.open(site.folder / f"{part}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(process)d %(name)s: %(message)s %(reason)s", defaults={"reason": ""}))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _append(log: SqliteLog, topic: str, payload: bytes) -> "Future[int]":
    while True:
        try:
            return log.append(topic, key_of(payload), payload)
        except ResourceExhausted:
            time.sleep(_PAUSE_SECONDS)


def _note(ledger: int, group: list[tuple[str, "Future[int]"]]) -> None:
    """Waits until all are durable, and writes that down."""
    for event_id, appended in group:
        appended.result(_ACKNOWLEDGED_SECONDS)
        os.write(ledger, f"{event_id}\n".encode())
    group.clear()


def _trip_wire(site: Site, schedule: Schedule, part: str) -> Callable[[str], None]:
    """Strikes at the schedule's steps, each fault once in a run, whichever process of the part gets there first."""
    passes: Counter[str] = Counter()
    waiting = [(number, fault) for number, fault in enumerate(schedule.faults) if fault.part == part]

    def reached(step: str) -> None:
        assert step in STEPS[part], step
        passes[step] += 1
        for number, fault in waiting:
            due = fault.step == step and passes[step] >= fault.nth and not site.over.exists()
            if due and _first(site.struck(number)):
                _strike(site, fault.kind)

    return reached


def _first(mark: Path) -> bool:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _strike(site: Site, kind: str) -> None:
    match kind:
        case _ if kind == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case _ if kind == FREEZE:
            os.kill(os.getpid(), signal.SIGSTOP)
        case _ if kind == DISK_FULL:
            _fill(site.hog)


def _fill(hog: Path) -> None:
    """Until there is no room for one more byte."""
    with hog.open("ab", buffering=0) as file:
        for size in (_HOG_BYTES, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
