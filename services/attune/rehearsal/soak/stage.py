"""Runs a schedule: starts the parts, lets the faults strike, starts again what ended, and waits until all is quiet."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil

from attune.errors import FailedPrecondition
from attune.eventlog.broker import LocalBroker
from attune.eventlog.cluster import Cluster
from attune.eventlog.topics import TopicRules, create_topics
from attune.rehearsal.soak import check, parts
from attune.rehearsal.soak.events import PERSONA
from attune.rehearsal.soak.parts import Site
from attune.rehearsal.soak.schedule import FREEZE, KILL, Schedule

_LOOK_SECONDS = 0.02
_FROZEN_SECONDS = 1.0
"""Of a part; a rival takes over meanwhile."""
_BROKER_DOWN_SECONDS = 0.3
_BROKER_FROZEN_SECONDS = 2.5
"""Longer than every time-out of REQUEST_SECONDS and DELIVERY_SECONDS."""
REQUEST_SECONDS, DELIVERY_SECONDS = 0.8, 1.2
_FULL_SECONDS = 0.5
_ACT_SECONDS = 4.0
"""Faults that have not struck by then do not."""
_SETTLE_SECONDS = 40.0
_STOP_SECONDS = 30.0
_DISK_MIB = 24
_TARGETS: dict[str, Callable[[Site, Schedule], None]] = {
    "writer": parts.writer,
    "shipper": parts.shipper,
    "aggregator": parts.aggregator,
}

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["attune.rehearsal.soak.parts"])


@dataclass(frozen=True)
class Outcome:
    """How a run went."""

    schedule: Schedule
    struck: int
    """How many of its faults struck."""
    acknowledged: int
    seconds: float
    wrong: tuple[str, ...]


def run(schedule: Schedule, folder: Path, broker: "Broker | None", *, disk: bool) -> Outcome:
    """One schedule in a fresh folder; the broker is needed for those with Kafka."""
    begun = time.monotonic()
    with _small_disk(folder / "disk", wanted=disk) as small:
        cluster = None
        if schedule.kafka:
            assert broker is not None
            cluster = broker.cluster(schedule.seed)
        site = Site(folder, small, cluster)
        site.source.mkdir()
        (site.source / f"{PERSONA}.toml").write_text('system_prompt = ""\n')
        stage = _Stage(site, schedule, broker if schedule.kafka else None)
        try:
            stage.play()
            wrong = stage.settle()
        finally:
            stage.clear()
        wrong = wrong or check.findings(site, schedule)
        told = len(site.told.read_text().splitlines())
    struck = sum(site.struck(number).exists() for number in range(len(schedule.faults)))
    return Outcome(schedule, struck, told, time.monotonic() - begun, tuple(wrong))


def run_each(schedules: Sequence[Schedule], run_one: Callable[[Schedule], object]) -> None:
    """Those with Kafka one after another, for they share a broker, and the others beside them.

    The first are run in this thread: a broker that a run starts again dies with the thread that started it.
    """
    with ThreadPoolExecutor(1) as beside:
        others = [beside.submit(run_one, schedule) for schedule in schedules if not schedule.kafka]
        try:
            for schedule in schedules:
                if schedule.kafka:
                    run_one(schedule)
            for other in others:
                other.result()
        finally:
            beside.shutdown(cancel_futures=True)  # where one failed, or somebody gave up, no other is begun


class Broker:
    """One broker for many runs, with topics of its own for each."""

    def __init__(self, folder: Path, port: int, jars: Path) -> None:
        self._broker = LocalBroker(folder, port)
        self._jars = jars
        self._broker.start(jars)

    def cluster(self, seed: int) -> Cluster:
        cluster = Cluster(
            (self._broker.address,), f"soak-{os.getpid()}-{seed}.", REQUEST_SECONDS, DELIVERY_SECONDS, 1 << 20
        )
        create_topics(replace(cluster, request_seconds=20), TopicRules(3, None, 1, 1))
        return cluster

    def kill(self) -> None:
        self._broker.kill()

    def start(self) -> None:
        self._broker.start(self._jars)

    def freeze(self) -> None:
        os.kill(self._broker.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._broker.pid, signal.SIGCONT)


@dataclass(eq=False)
class _Stage:
    site: Site
    schedule: Schedule
    broker: Broker | None
    _running: list[tuple[str, ForkServerProcess]] = field(default_factory=list)
    _begun: float = field(default_factory=time.monotonic)
    # When to undo something, on the monotonic clock, and how.
    _later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _frozen: set[int | None] = field(default_factory=set)
    _written: bool = False

    def play(self) -> None:
        """Until everything was sent, and every fault has struck or has had its time."""
        self._start("writer")
        self._start("aggregator")
        if self.schedule.rival:
            self._start("aggregator")
        if self.broker is not None:
            self._start("shipper")
        clocked = [(number, fault) for number, fault in enumerate(self.schedule.faults) if not fault.step]
        while not (self._written and (self._all_struck() or self._elapsed() > _ACT_SECONDS)):
            for number, fault in clocked:
                if self._elapsed() >= fault.at_seconds and not self.site.struck(number).exists():
                    self._strike(number, fault.part, fault.kind)
            self._tend()
            time.sleep(_LOOK_SECONDS)

    def settle(self) -> list[str]:
        """Faults are over; what was acknowledged is to reach the lake by itself, and everything stops in order."""
        self.site.over.touch()
        deadline = time.monotonic() + _SETTLE_SECONDS
        while self._later or self._is_struck() or check.missing(self.site):
            if time.monotonic() > deadline:
                return [
                    f"{check.missing(self.site)} acknowledged records are not in the lake after {_SETTLE_SECONDS} s"
                ]
            self._tend()
            time.sleep(_LOOK_SECONDS)
        for _, process in self._running:
            process.terminate()
        for part, process in self._running:
            if not self._ends_in_order(part, process):
                return [f"{part} ended with {process.exitcode} when it was told to stop"]
        return []

    def _ends_in_order(self, part: str, process: ForkServerProcess) -> bool:
        """The last fault may strike between its mark and the end of the run: then it ends as that fault has it."""
        deadline = time.monotonic() + _STOP_SECONDS
        while process.exitcode is None and time.monotonic() < deadline:
            if _is_stopped(process.pid or 0):
                self._thaw(process.pid)
            process.join(_LOOK_SECONDS)
        killed = any(fault.part == part and fault.kind == KILL for fault in self.schedule.faults)
        return process.exitcode == 0 or (killed and process.exitcode == -signal.SIGKILL)

    def clear(self) -> None:
        """However it went: nothing of the run is left running, and the broker is well."""
        for _, process in self._running:
            process.kill()
            process.join()
        for _, undo in self._later:
            undo()

    def _start(self, part: str) -> None:
        process = _processes.Process(target=_TARGETS[part], args=(self.site, self.schedule), daemon=True)
        process.start()
        self._running.append((part, process))

    def _tend(self) -> None:
        """Starts again what was killed, starts a rival of what is frozen, and undoes what has lasted long enough."""
        for part, process in list(self._running):
            if process.exitcode is not None:
                self._running.remove((part, process))
                if part == "writer" and process.exitcode == 0:
                    self._written = True
                else:
                    self._start(part)
            elif process.pid not in self._frozen and _is_stopped(process.pid or 0):
                self._frozen.add(process.pid)
                self._start(part)
                self._undo_after(_FROZEN_SECONDS, lambda pid=process.pid: self._thaw(pid))  # type: ignore[misc]
        if self.site.hog.exists() and not any(undo == self._make_room for _, undo in self._later):
            self._undo_after(_FULL_SECONDS, self._make_room)
        now = time.monotonic()
        due = [undo for when, undo in self._later if when <= now]
        self._later = [(when, undo) for when, undo in self._later if when > now]
        for undo in due:
            undo()

    def _strike(self, number: int, part: str, kind: str) -> None:
        self.site.struck(number).touch()
        if part == "writer":
            for name, process in self._running:
                if name == part:
                    process.kill()
        elif self.broker is not None and not self._later:  # one thing at a time is done to the broker
            if kind == KILL:
                self.broker.kill()
                self._undo_after(_BROKER_DOWN_SECONDS, self.broker.start)
            elif kind == FREEZE:
                self.broker.freeze()
                self._undo_after(_BROKER_FROZEN_SECONDS, self.broker.thaw)

    def _is_struck(self) -> bool:
        """Whether some part lies dead or frozen, noticed or not."""
        return any(process.exitcode is not None or _is_stopped(process.pid or 0) for _, process in self._running)

    def _thaw(self, pid: int | None) -> None:
        self._frozen.discard(pid)
        assert pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _make_room(self) -> None:
        self.site.hog.unlink(missing_ok=True)

    def _undo_after(self, seconds: float, undo: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, undo))

    def _all_struck(self) -> bool:
        return all(self.site.struck(number).exists() for number in range(len(self.schedule.faults)))

    def _elapsed(self) -> float:
        return time.monotonic() - self._begun


def _is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def can_fill_a_disk(folder: Path) -> bool:
    """Whether a small disk can be mounted here (root on Linux)."""
    probe = folder / "disk-probe"
    try:
        with _small_disk(probe, wanted=True):
            return True
    except FailedPrecondition:
        return False
    finally:
        shutil.rmtree(probe, ignore_errors=True)


@contextlib.contextmanager
def _small_disk(folder: Path, *, wanted: bool) -> Iterator[Path]:
    """A folder on a disk of its own that is soon full; an ordinary one where none is wanted."""
    folder.mkdir(parents=True)
    if not wanted:
        yield folder
        return
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        raise FailedPrecondition(f"no disk can be mounted at {folder}; this needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
