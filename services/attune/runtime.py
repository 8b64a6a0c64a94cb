"""What every service process does alike: say where it listens, stop when told, and die with its parent."""

import asyncio
import contextlib
import ctypes
import json
import math
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attune.errors import Unavailable

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.5


def write_endpoints(data: Path, service: str, **ports: int) -> None:
    """Writes `run/<service>.json`: this process's id and the ports it listens on, atomically."""
    folder = data / "run"
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{service}.{os.getpid()}"
    draft.write_text(json.dumps({"pid": os.getpid(), **ports}))
    draft.replace(folder / f"{service}.json")


def read_endpoints(data: Path, service: str) -> dict[str, int]:
    """What a running service wrote; raises Unavailable when it has written nothing."""
    try:
        endpoints = json.loads((data / "run" / f"{service}.json").read_bytes())
        return {name: int(value) for name, value in endpoints.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError, RecursionError):
        raise Unavailable(f"{service} is not running on {data}; start it with `attune up --data {data}`") from None


def read_port(data: Path, service: str, name: str) -> int:
    """One of them; raises Unavailable when the service has not written it either."""
    endpoints = read_endpoints(data, service)
    if name not in endpoints:
        file = data / "run" / f"{service}.json"
        raise Unavailable(f"{file} names no {name} port; stop `attune up` and start it again, which writes it anew")
    return endpoints[name]


@contextlib.contextmanager
def announced(data: Path, service: str, **ports: int) -> Iterator[None]:
    """While it lasts, others find the service by what is written."""
    write_endpoints(data, service, **ports)
    try:
        yield
    finally:
        clear_endpoints(data, service)


def clear_endpoints(data: Path, service: str) -> None:
    """Removes what write_endpoints wrote."""
    (data / "run" / f"{service}.json").unlink(missing_ok=True)


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the thread that started it ends (Linux only; elsewhere does nothing).

    A parent that died before the call is noticed in what multiprocessing started; `attune up` needs no such care, for
    it makes the same call between fork and exec.
    """
    parent = os.getppid()
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    starter = multiprocessing.parent_process()
    if os.getppid() != parent or (starter is not None and not starter.is_alive()):
        os.kill(os.getpid(), signal.SIGKILL)


class SignalEvent(threading.Event):
    """An event that a signal handler may set.

    threading.Event takes a lock to be set: a handler that runs while its own thread is inside `wait` deadlocks. This
    one writes to a pipe. It cannot be cleared.
    """

    def __init__(self) -> None:
        super().__init__()
        self._happened = False
        self._reader, self._writer = os.pipe()

    def is_set(self) -> bool:
        return self._happened

    def set(self) -> None:
        if not self._happened:
            self._happened = True
            os.write(self._writer, b".")

    def clear(self) -> None:
        raise NotImplementedError("a stop is for good")

    def wait(self, timeout: float | None = None) -> bool:
        ends = math.inf if timeout is None else time.monotonic() + timeout
        while not self._happened and (left := ends - time.monotonic()) > 0:
            # Never for long: of a signal that comes just before the kernel waits, the handler runs when that ends.
            select.select([self._reader], [], [], min(left, _LOOK_SECONDS))
        return self._happened


def stop_on_signals(then: Callable[[], None] | None = None) -> threading.Event:
    """An event that SIGTERM and SIGINT set; `then` is called in the handler as well. Main thread only."""
    stopping = SignalEvent()

    def stop(_number: int, _frame: object) -> None:
        stopping.set()
        if then is not None:
            then()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Lets the time pass, or less of it when it is to stop."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
