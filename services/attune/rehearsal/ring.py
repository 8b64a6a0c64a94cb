"""The ring that is rehearsed: started as a child and ended again, or one that runs already."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from attune.client.place import Place, place_of
from attune.errors import AttuneError, Unavailable
from attune.runtime import read_endpoints
from attune.settings import Settings, load_settings

SERVICES = ("inference", "aggregator", "trainer", "rollout")
FREE_PORTS = {
    f"ATTUNE_{port.upper()}_PORT": "0"
    for port in (
        *("inference__grpc", "inference__http", "aggregator__grpc", "rollout__grpc"),
        *(f"{service}__metrics" for service in SERVICES),
    )
}
"""Settings by which the system chooses free ports; after a restart they are others."""

_LOOK_SECONDS = 0.2
_GONE_SECONDS = 10.0
_LAST_LINES = 12

# Ties `attune up` to this process before it starts anything: if the rehearsal is killed, so is its ring.
_TIED = (
    "import runpy; from attune.runtime import die_with_parent; die_with_parent(); "
    "runpy.run_module('attune.cli.main', run_name='__main__', alter_sys=True)"
)


class RingError(AttuneError):
    """The ring did not start, ended by itself, or left something behind."""


@dataclass(frozen=True)
class Ring:
    """Where a running ring is."""

    data: Path
    chat: Place
    policies: Place
    metrics_ports: Mapping[str, int]
    metrics_tls: bool

    @property
    def inference_pid(self) -> int:
        """The process that serves now; 0 while there is none."""
        try:
            return read_endpoints(self.data, "inference")["pid"]
        except AttuneError:
            return 0


def running_ring(settings: Settings, chat_address: str = "") -> Ring:
    """The ring of a data folder; raises Unavailable when a service of it is not running."""
    endpoints = {service: read_endpoints(settings.data, service) for service in SERVICES}
    return Ring(
        data=settings.data,
        chat=place_of(settings, "inference", chat_address),
        policies=place_of(settings, "rollout"),
        metrics_ports={service: endpoints[service]["metrics"] for service in SERVICES},
        metrics_tls=settings.tls.certificate is not None,
    )


class OwnRing:
    """`attune up` as a child on a data folder of its own; its output goes to `<data>/logs/up.log`.

    Starts in a session of its own, so that a Ctrl-C meant for the rehearsal lets it end the ring in order.
    """

    def __init__(self, data: Path, config: Path | None, overrides: Mapping[str, str]) -> None:
        self.data = data
        self._config = config
        self._environment = {**os.environ, **overrides}
        self.log = data / "logs" / "up.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        options = [] if config is None else ["--config", str(config)]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _TIED, "up", "--data", str(data), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        self._seen: dict[int, psutil.Process] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Notes which processes belong to the ring; raises RingError if it has ended."""
        if self._process.poll() is not None:
            raise RingError(f"`attune up` ended with {self._process.returncode}; {self.last_words()}")
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.pid).children(recursive=True):
                self._seen.setdefault(process.pid, process)

    async def ready(self, seconds: float, told: Callable[[str], None]) -> Ring:
        """The ring once all its services are there; raises RingError if it ends before or takes too long.

        `told` hears of each service that is ready.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        said: set[str] = set()
        while True:
            self.check()
            for service in SERVICES:
                with contextlib.suppress(Unavailable):
                    read_endpoints(self.data, service)
                    if service not in said:
                        said.add(service)
                        told(f"{service} is there")
            if len(said) == len(SERVICES):
                with contextlib.suppress(Unavailable):
                    return running_ring(self._settings())
            if asyncio.get_running_loop().time() > deadline:
                raise RingError(f"the ring was not ready after {seconds:.0f} s; {self.last_words()}")
            await asyncio.sleep(_LOOK_SECONDS)

    async def end(self, seconds: float) -> str:
        """Ends the ring in order, by force after that time; says what was wrong about the end, or nothing.

        Processes that outlive the ring are killed, and said.
        """
        faults = []
        if self._process.poll() is None:
            with contextlib.suppress(RingError):
                self.check()
            self._process.send_signal(signal.SIGTERM)
            if not await self._ended(seconds):
                faults.append(f"`attune up` did not end within {seconds:.0f} s of SIGTERM")
                self._process.kill()
                await self._ended(_GONE_SECONDS)
        if self._process.returncode != 0 and not faults:
            faults.append(f"`attune up` ended with {self._process.returncode}")
        left = await self._left()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                faults.append(f"process {process.pid} ({process.name()}) was left over and was killed")
                process.kill()
        return "; ".join(faults)

    async def _ended(self, seconds: float) -> bool:
        deadline = asyncio.get_running_loop().time() + seconds
        while self._process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True

    async def _left(self) -> Sequence[psutil.Process]:
        """Processes of the ring that are still there some moments after its end."""
        deadline = asyncio.get_running_loop().time() + _GONE_SECONDS / 5
        while True:
            left = [process for process in self._seen.values() if _is_alive(process)]
            if not left or asyncio.get_running_loop().time() > deadline:
                return left
            await asyncio.sleep(_LOOK_SECONDS)

    def _settings(self) -> Settings:
        return load_settings(self._config, {**self._environment, "ATTUNE_DATA": str(self.data)})

    def last_words(self) -> str:
        """The end of what `attune up` said."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f"the last of {self.log}:\n" + "\n".join(f"    {line}" for line in lines[-_LAST_LINES:])


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextlib.asynccontextmanager
async def own_ring(
    data: Path, config: Path | None, overrides: Mapping[str, str], *, end_seconds: float, faults: list[str]
) -> AsyncIterator[OwnRing]:
    """A ring that is ended however the body ends; what was wrong about its end is added to `faults`."""
    ring = OwnRing(data, config, overrides)
    try:
        yield ring
    finally:
        fault = await ring.end(end_seconds)
        if fault:
            faults.append(fault)
