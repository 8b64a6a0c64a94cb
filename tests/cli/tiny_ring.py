"""`attune up` with services small enough to be started by the dozen.

`python tiny_ring.py ring` is the supervisor; `python tiny_ring.py <service>` is one of its services: it takes a child
of its own, writes its endpoints, serves a metrics page, and says in `journal` when it started and stopped. What a
service is to do wrong stands in the file `<service>.orders` of the data folder.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil
from prometheus_client import Gauge

from attune import metrics, metrics_page, runtime

DEADLINE_SECONDS = 30.0

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = DEADLINE_SECONDS) -> T:
    """The first true value of the condition; fails after the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so after {seconds} s: {condition}"
        time.sleep(0.02)
    return value


def start_ring(data: Path, **overrides: object) -> subprocess.Popen[str]:
    """A supervisor in a process of its own, with ports of the system's choice."""
    from attune.rehearsal.ring import FREE_PORTS

    data.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "ATTUNE_DATA": str(data),
        **FREE_PORTS,
        "ATTUNE_SUPERVISOR__RESTART_BACKOFF_SECONDS": "0.05",
        **{f"ATTUNE_{key.upper()}": str(value) for key, value in overrides.items()},
    }
    return subprocess.Popen(
        [sys.executable, __file__, "ring"],
        env=environment,
        stdout=open(data / "screen", "w"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def screen(data: Path) -> str:
    return (data / "screen").read_text()


def journal(data: Path) -> list[str]:
    file = data / "journal"
    return file.read_text().splitlines() if file.exists() else []


def order(data: Path, service: str, what: str) -> None:
    data.mkdir(parents=True, exist_ok=True)
    (data / f"{service}.orders").write_text(what)


def processes(data: Path) -> list[psutil.Process]:
    """Everything that runs on this data folder, but for the supervisor."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("ATTUNE_DATA") == str(data) and process.status() != psutil.STATUS_ZOMBIE
            if ours and process.cmdline()[-1:] != ["ring"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _ring() -> int:
    # A service of the dozen imports none of this.
    from attune.cli.preflight import SERVICES
    from attune.cli.supervisor import Service
    from attune.cli.up import steady_console, up
    from attune.errors import AttuneError
    from attune.settings import load_settings

    settings = load_settings(None)
    services = [Service(name, (sys.executable, __file__, name)) for name in SERVICES]
    try:
        return 0 if up(settings, services, os.environ, steady_console()) else 1
    except AttuneError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1


def _service(name: str, environment: Mapping[str, str]) -> int:
    data = Path(environment["ATTUNE_DATA"])
    orders_file = data / f"{name}.orders"
    orders = orders_file.read_text() if orders_file.exists() else ""
    child = multiprocessing.get_context("fork").Process(target=_child)  # nothing has a thread yet
    child.start()
    with open(data / "journal", "a") as file:
        file.write(f"{name} started {os.getpid()} {child.pid} {time.monotonic()}\n")
    if "fail" in orders:
        sys.stderr.write(f"{name} cannot find its model\n")
        os._exit(3)  # as a crash, which leaves the child behind
    stopping = runtime.stop_on_signals()
    if "stubborn" in orders:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    port, _, _ = metrics_page.serve_metrics("127.0.0.1", 0)
    if name == "inference":
        metrics.ENGINE_SERVING.set(1)
        metrics.POLICY_IN_SERVICE.labels("concierge").set(0)
    runtime.write_endpoints(data, name, grpc=1, http=2, metrics=port)
    seen = ""
    while not stopping.wait(0.05):
        now = orders_file.read_text() if orders_file.exists() else ""
        if now != seen:
            seen = now
            _obey(now)
    child.kill()
    with open(data / "journal", "a") as file:
        file.write(f"{name} stopped\n")
    return 0


def _child() -> None:
    """As vLLM's processes are: tied to the service, deaf to SIGTERM."""
    runtime.die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pause()


def _obey(orders: str) -> None:
    gauges: dict[str, Gauge] = {"serving": metrics.ENGINE_SERVING}
    for line in orders.splitlines():
        word, _, number = line.partition(" ")
        if word == "policy":
            metrics.POLICY_IN_SERVICE.labels("concierge").set(int(number))
        elif word in gauges:
            gauges[word].set(int(number))


if __name__ == "__main__":
    if sys.argv[1] == "ring":
        sys.exit(_ring())
    sys.exit(_service(sys.argv[1], os.environ))
