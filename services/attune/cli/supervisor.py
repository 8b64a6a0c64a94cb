"""Keeps a few services running as processes of one parent, on Linux.

Not circus, supervisord or honcho: none of them ties its processes to its own life (a supervisor killed with -9 leaves
them running), ends what a crashed service left behind in its process group, and drains in an order; wrapping one for
that would be longer than this file.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attune.errors import FailedPrecondition

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.02
_LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec nothing may be


@dataclass(frozen=True)
class Service:
    """A program that is to run for as long as the supervisor does."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Exited:
    """A service ended although nobody told it to."""

    service: str
    how: str
    ran_seconds: float
    failures: int
    restart_in_seconds: float


@dataclass(frozen=True)
class Started:
    """A service was started anew."""

    service: str
    pid: int


@dataclass(frozen=True)
class Stopped:
    """A service ended because it was told to; `in_order` unless it was killed or reported a failure."""

    service: str
    how: str
    seconds: float
    in_order: bool


@contextlib.contextmanager
def hold(data: Path, wait_seconds: float) -> Iterator[int]:
    """Takes the data folder for this process; raises FailedPrecondition when another `attune up` has it.

    Yields a descriptor that services inherit: what is left of an earlier start keeps it locked until the last process
    has ended, and is waited for.
    """
    (data / "run").mkdir(parents=True, exist_ok=True)
    with open(data / "lock", "a+") as mine, open(data / "run" / "services.lock", "a+") as theirs:
        if not _lock(mine.fileno()):
            mine.seek(0)
            process = mine.read().strip()
            raise FailedPrecondition(
                f"{data} is in use by another `attune up` (process {process or 'unknown'}); "
                "stop that one first, or name another folder with --data"
            )
        mine.truncate(0)
        mine.write(f"{os.getpid()}\n")
        mine.flush()
        deadline = time.monotonic() + wait_seconds
        while not _lock(theirs.fileno()):
            if time.monotonic() > deadline:
                raise FailedPrecondition(f"processes of an earlier start still use {data}; end them first")
            time.sleep(_LOOK_SECONDS)
        yield theirs.fileno()


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def backoff_seconds(failures: int, first_seconds: float, most_seconds: float) -> float:
    """The pause before the next start after so many failures in a row: doubles from the first, up to the most."""
    return float(min(first_seconds * 2 ** min(failures - 1, 32), most_seconds))


class _Child:
    """One service's process, if it has one now."""

    def __init__(self, service: Service, log: Path) -> None:
        self.service = service
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.failures = 0
        self.restart_at = 0.0

    def spawn(self, environment: Mapping[str, str], keep: Sequence[int]) -> int:
        """Starts it in a session of its own, to be killed by the kernel when this thread ends."""
        self.started_at = time.monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.service.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environment),
                start_new_session=True,
                pass_fds=tuple(keep),
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - it calls nothing that takes a lock
            )
        return self.process.pid

    def has_exited(self) -> bool:
        """Without reaping: until it is reaped, its process group's number cannot go to anybody else."""
        assert self.process is not None
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def bury(self) -> int:
        """Kills what is left of the group, reaps, and returns the exit status as subprocess gives it."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        status = self.process.wait()
        self.process = None
        return status


class Supervisor:
    """Starts services, restarts them with exponential back-off, and stops them in order.

    Spawns from the thread that calls it, which must be the main one: services are tied to its life. Does its work in
    `tick`, which is to be called a few times a second. Logs go to `<log_folder>/<service>.log`; one that passes
    max_log_bytes is copied to `.1` and emptied, which may lose the lines of that moment.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        log_folder: Path,
        environment: Mapping[str, str],
        keep_descriptors: Sequence[int] = (),
        first_backoff_seconds: float,
        most_backoff_seconds: float = 30,
        stable_seconds: float = 60,
        max_log_bytes: int = 16 << 20,
    ) -> None:
        self._children = {service.name: _Child(service, log_folder / f"{service.name}.log") for service in services}
        self._environment = environment
        self._keep_descriptors = keep_descriptors
        self._first_backoff_seconds = first_backoff_seconds
        self._most_backoff_seconds = most_backoff_seconds
        self._stable_seconds = stable_seconds
        self._max_log_bytes = max_log_bytes

    def __enter__(self) -> "Supervisor":
        for child in self._children.values():
            child.spawn(self._environment, self._keep_descriptors)
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            if child.process is not None:
                child.bury()

    def pid(self, service: str) -> int | None:
        """The running process, None between an exit and the restart."""
        process = self._children[service].process
        return None if process is None else process.pid

    def log(self, service: str) -> Path:
        return self._children[service].log

    def tick(self) -> list[Exited | Started]:
        """Notices exits, makes the restarts that are due, and keeps logs bounded."""
        now = time.monotonic()
        events: list[Exited | Started] = []
        for child in self._children.values():
            if child.process is None:
                if now >= child.restart_at:
                    events.append(self._restart(child, now))
            elif child.has_exited():
                events.append(self._failed(child, _how(child.bury()), now))
            self._bound(child.log)
        return events

    def kill(self, service: str) -> None:
        """Kills a service's whole group at once; the next tick sees the exit."""
        child = self._children[service]
        if child.process is not None:
            os.killpg(child.process.pid, signal.SIGKILL)

    def drain(self, ready: Collection[str], stop_seconds: float, hurried: Callable[[], bool]) -> Iterator[Stopped]:
        """Stops the services one after the other, as they are listed, each before the next is told.

        One that takes longer than stop_seconds is killed; all are when `hurried` says so. One that is not ready has
        promised nothing to anybody: it is killed at once, and that is in order.
        """
        for child in self._children.values():
            if child.process is None:
                continue
            began = time.monotonic()
            if child.service.name not in ready:
                child.bury()
                yield Stopped(child.service.name, "was still starting", 0.0, in_order=True)
                continue
            os.kill(child.process.pid, signal.SIGTERM)  # Popen's own way would reap it, see has_exited
            while not child.has_exited() and not hurried() and time.monotonic() - began < stop_seconds:
                time.sleep(_LOOK_SECONDS)
            status = child.bury()
            yield Stopped(child.service.name, _how(status), time.monotonic() - began, in_order=status == 0)

    def _restart(self, child: _Child, now: float) -> Exited | Started:
        try:
            return Started(child.service.name, child.spawn(self._environment, self._keep_descriptors))
        except OSError as error:  # no memory, no process ids: as transient as a crash
            return self._failed(child, f"could not be started ({error.strerror})", now)

    def _failed(self, child: _Child, how: str, now: float) -> Exited:
        ran_seconds = now - child.started_at
        child.failures = 1 if ran_seconds >= self._stable_seconds else child.failures + 1
        pause = backoff_seconds(child.failures, self._first_backoff_seconds, self._most_backoff_seconds)
        child.restart_at = now + pause
        return Exited(child.service.name, how, ran_seconds, child.failures, pause)

    def _bound(self, log: Path) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the supervisor
            if log.stat().st_size > self._max_log_bytes:
                shutil.copyfile(log, log.with_suffix(".log.1"))
                os.truncate(log, 0)


def _die_with(parent: int) -> Callable[[], None]:
    """To be called between fork and exec: the kernel kills the process when its parent's thread ends."""

    def tie() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def _how(status: int) -> str:
    if status < 0:
        name = {number.value: number.name for number in signal.Signals}.get(-status, f"signal {-status}")
        return f"was killed by {name}"
    return f"exited with {status}"
