"""Measures overload: `python -m bench.overload`.

One server that takes `--rated` answers at once. First as many clients as that, each asking again as soon as its answer
is there: the rated load. Then ten times the calls a second that this gave, come what may: calls arrive at random times
of their own and are not tried again. What is admitted should take as long as at the rated load, what is refused should
be told at once, with when to come back; memory should stay as it was and health SERVING. Afterwards the rated load
again. The server and the clients (two processes) have cores of their own. Writes the section `Overload` of
docs/measurements.md.
"""

# ruff: noqa: T201 - it talks to the terminal, and its processes to each other

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from attune.personas.api_keys import local_api_key
from attune.runtime import read_endpoints
from attune.settings import API_KEY_VARIABLE
from attune.v1 import chat_pb2, chat_pb2_grpc, event_pb2
from bench.serving import Server, environment, halves, machine, running, write_section

OUTPUT_TOKENS = 64
PROCESSES = 2
CONNECTIONS = 16
DEADLINE_SECONDS = 60.0
SETTLE_SECONDS = 30.0
HEALTH_SECONDS = 0.25
REFUSED = "RESOURCE_EXHAUSTED"


@dataclass(frozen=True)
class Call:
    """One call as its client saw it; seconds on the system-wide monotonic clock."""

    planned: float
    asked: float
    ended: float
    code: str
    # Whether the refusal said when to come back.
    retry_info: bool

    @property
    def seconds(self) -> float:
        return self.ended - self.asked


@dataclass(frozen=True)
class Footprint:
    """What the server holds: the process that faces the clients, and with its children."""

    front_mib: float
    whole_mib: float
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Health:
    """What health said while a load ran."""

    answers: int
    not_serving: int
    slowest_ms: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rated", type=int, default=64, help="answers that the server takes at once")
    arguments.add_argument("--factor", type=float, default=10, help="how many times the rated load")
    arguments.add_argument("--seconds", type=float, default=60, help="of overload; half as long of rated load")
    arguments.add_argument("--threads", type=int, default=0, help="of the engine; 0: half of its cores")
    arguments.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "measurements.md")
    arguments.add_argument("--dry", action="store_true", help="print the section only")
    options = arguments.parse_args()

    server_cores, client_cores = halves()
    os.environ.update(environment(options.threads or max(1, len(server_cores) // 2)))
    os.environ["ATTUNE_INFERENCE__MAX_CONCURRENT_REQUESTS"] = str(options.rated)
    with tempfile.TemporaryDirectory() as folder, running("attune", Path(folder), server_cores) as server:
        load = Load(server, Path(folder), client_cores)
        rated_seconds = options.seconds / 2
        load.closed(options.rated, rated_seconds / 2)  # not counted: it fills caches and makes connections
        rated, _ = load.closed(options.rated, rated_seconds)
        rate = len(answered(rated)) / rated_seconds
        before = footprint(server)
        overload, health = load.open(rate * options.factor, options.seconds)
        left = settled(server.data)
        after = footprint(server)
        again, _ = load.closed(options.rated, rated_seconds)
    section = report(options, (rated, overload, again), health, (before, after), left)
    print(section)
    if not options.dry:
        write_section(options.out, section)


class Load:
    """Clients in processes of their own."""

    def __init__(self, server: Server, folder: Path, cores: set[int]) -> None:
        endpoints = read_endpoints(server.data, "inference")
        self._address = f"127.0.0.1:{endpoints['grpc']}"
        self._environment = {**os.environ, API_KEY_VARIABLE: local_api_key(server.data)}
        self._folder = folder
        self._cores = list(cores)
        self._seeds = itertools.count(1)

    def closed(self, clients: int, seconds: float) -> tuple[list[Call], Health]:
        """So many clients, each asking again as soon as it has its answer."""
        return self._run("closed", clients / PROCESSES, seconds)

    def open(self, rate: float, seconds: float) -> tuple[list[Call], Health]:
        """So many calls a second, come what may."""
        return self._run("open", rate / PROCESSES, seconds)

    def _run(self, kind: str, amount: float, seconds: float) -> tuple[list[Call], Health]:
        files = [self._folder / f"calls-{number}" for number in range(PROCESSES)]
        processes = []
        for file in files:
            command = [sys.executable, "-m", "bench.overload", kind, self._address]
            command += [str(amount), str(seconds), str(next(self._seeds))]
            with file.open("w") as out:
                processes.append(subprocess.Popen(command, stdout=out, env=self._environment))
            psutil.Process(processes[-1].pid).cpu_affinity(self._cores)
        health = watched(self._address, processes, seconds + 2 * DEADLINE_SECONDS)
        if any(process.returncode for process in processes):
            sys.exit("a client process failed")
        return [Call(*fields) for file in files for fields in json.loads(file.read_text())], health


def watched(address: str, processes: Sequence["subprocess.Popen[bytes]"], most_seconds: float) -> Health:
    """Asks for health until the processes have ended."""
    took: list[float] = []
    not_serving = 0
    deadline = time.monotonic() + most_seconds
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while any(process.poll() is None for process in processes):
            if time.monotonic() > deadline:
                for process in processes:
                    process.kill()
                sys.exit("the clients did not end in time")
            begun = time.monotonic()
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
                not_serving += answer.status != health_pb2.HealthCheckResponse.SERVING
            except grpc.RpcError:
                not_serving += 1
            took.append(time.monotonic() - begun)
            time.sleep(HEALTH_SECONDS)
    return Health(len(took), not_serving, max(took) * 1000)


def footprint(server: Server) -> Footprint:
    children = server.front.children(recursive=True)
    front = server.front.memory_info().rss
    whole = front + sum(child.memory_info().rss for child in children)
    return Footprint(front / 2**20, whole / 2**20, server.front.num_fds(), server.front.num_threads())


def settled(data: Path) -> int:
    """Waits until no call runs; how many run all the same."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (left := in_flight(data)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def in_flight(data: Path) -> int:
    """Chat calls that hold a place in the server, by its metrics."""
    port = read_endpoints(data, "inference")["metrics"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("attune_requests_in_flight{")))


# What the client processes do.


async def clients(kind: str, address: str, amount: float, seconds: float, seed: int) -> list[Call]:
    calls: list[Call] = []
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            for _ in range(CONNECTIONS)
        ]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        asking = itertools.cycle([asker(chat_pb2_grpc.ChatServiceStub(channel)) for channel in channels])
        if kind == "closed":
            await keep_asking([next(asking) for _ in range(round(amount))], seconds, calls)
        else:
            await arrive(asking, amount, seconds, random.Random(seed), calls)
    return calls


def asker(stub: Any) -> Any:
    key = (("authorization", f"Bearer {os.environ.get(API_KEY_VARIABLE, '')}"),)
    request = chat_pb2.ChatRequest(
        messages=[event_pb2.Message(role=event_pb2.ROLE_USER, content="What can you tell me about the old town?")],
        sampling=event_pb2.Sampling(temperature=0.8, max_tokens=OUTPUT_TOKENS),
    )

    async def ask(planned: float) -> Call:
        asked, code, retry_info = time.monotonic(), "OK", False
        try:
            async for _ in stub.StreamChat(request, metadata=key, timeout=DEADLINE_SECONDS):
                pass
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            retry_info = any(
                b"RetryInfo" in value for name, value in error.trailing_metadata() if name.endswith("-bin")
            )
        return Call(planned or asked, asked, time.monotonic(), code, retry_info)

    return ask


async def keep_asking(askers: Sequence[Any], seconds: float, calls: list[Call]) -> None:
    until = time.monotonic() + seconds

    async def one(ask: Any) -> None:
        while time.monotonic() < until:
            calls.append(await ask(0.0))

    await asyncio.gather(*map(one, askers))


async def arrive(asking: Iterator[Any], rate: float, seconds: float, draw: random.Random, calls: list[Call]) -> None:
    """Each at its own time, drawn beforehand, however the calls before it fare."""
    planned = begun = time.monotonic()
    running: set[asyncio.Task[None]] = set()

    async def one(ask: Any, planned: float) -> None:
        calls.append(await ask(planned))

    while (planned := planned + draw.expovariate(rate)) < begun + seconds:
        if (early := planned - time.monotonic()) > 0:
            await asyncio.sleep(early)
        task = asyncio.create_task(one(next(asking), planned))
        running.add(task)
        task.add_done_callback(running.discard)
    while running:
        await asyncio.wait(running)


# The report.


def answered(calls: Sequence[Call]) -> list[Call]:
    return [call for call in calls if call.code == "OK"]


def report(
    options: argparse.Namespace,
    loads: tuple[Sequence[Call], Sequence[Call], Sequence[Call]],
    health: Health,
    footprints: tuple[Footprint, Footprint],
    left: int,
) -> str:
    rated, overload, again = loads
    before, after = footprints
    refused = [call for call in overload if call.code == REFUSED]
    admitted_p95, rated_p95 = (percentile_ms(answered(calls), 95) for calls in (overload, rated))
    admitted_median, refused_median = (percentile_ms(calls, 50) for calls in (answered(overload), refused))
    others = Counter(call.code for call in overload if call.code not in ("OK", REFUSED))
    late = percentile([(call.asked - call.planned) * 1000 for call in overload], 95)
    lines = [
        "## Overload",
        "",
        f"`python -m bench.overload`, {time.strftime('%Y-%m-%d')}. {machine()}",
        f"One server that takes {options.rated} answers of {OUTPUT_TOKENS} tokens at once; one run.",
        "",
        "| load | calls/s | answered | refused | answered in, ms (median; p95) | refused in, ms (median; p95) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        row(f"rated: {options.rated} clients", rated, options.seconds / 2),
        row(f"{options.factor:g} times as many calls", overload, options.seconds),
        row("rated, afterwards", again, options.seconds / 2),
        "",
        f"- p95 of what was admitted under overload, to the rated load's: {admitted_p95 / rated_p95:.2f} "
        "(at most 1.3).",
        f"- Median of a refusal, to the admitted median: {refused_median / admitted_median:.3f} (below 0.1).",
        f"- Refusals that said when to come back: {sum(call.retry_info for call in refused)} of {len(refused)}; "
        f"other statuses: {dict(others) or 'none'}.",
        f"- Memory before and after: front end {before.front_mib:.0f} and {after.front_mib:.0f} MiB "
        f"({after.front_mib / before.front_mib:.3f}), with the engine {before.whole_mib:.0f} and "
        f"{after.whole_mib:.0f} MiB ({after.whole_mib / before.whole_mib:.3f}; within 1.05).",
        f"- File descriptors {before.descriptors} and {after.descriptors}, threads {before.threads} and "
        f"{after.threads}; calls in flight afterwards: {left}.",
        f"- Health was asked {health.answers} times and was not SERVING {health.not_serving} times; the slowest answer "
        f"took {health.slowest_ms:.0f} ms.",
        f"- The clients sent 95 % of the calls within {late:.1f} ms of their time.",
    ]
    return "\n".join(lines) + "\n"


def row(name: str, calls: Sequence[Call], seconds: float) -> str:
    refused = [call for call in calls if call.code == REFUSED]
    cells = [name, f"{len(calls) / seconds:,.0f}", f"{len(answered(calls)):,}", f"{len(refused):,}"]
    cells += [
        f"{percentile_ms(some, 50):,.1f}; {percentile_ms(some, 95):,.1f}" if some else "–"
        for some in (answered(calls), refused)
    ]
    return f"| {' | '.join(cells)} |"


def percentile_ms(calls: Sequence[Call], percent: int) -> float:
    return percentile([call.seconds * 1000 for call in calls], percent)


def percentile(values: Sequence[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    match sys.argv[1:]:
        case [("closed" | "open") as kind, address, amount, seconds, seed]:
            found = asyncio.run(clients(kind, address, float(amount), float(seconds), int(seed)))
            print(json.dumps([list(asdict(call).values()) for call in found]))
        case _:
            main()
