"""Measures feedback: `python -m bench.feedback`.

Feedback at 500 a second, at random times of their own, over gRPC with an API key and a client's id each: authenticated,
checked, logged durably, its id kept durably, acknowledged. Beside it, in the same round and on the same cores, a bare
SQLite file to which one thread commits the same rows at the same rate, all that wait at once, WAL and synchronous=FULL.
Both with nothing else to do, and both beside 16 running streams. Writes the section `Feedback` of docs/measurements.md.
"""

# ruff: noqa: T201 - it talks to the terminal, and its processes to each other

import argparse
import asyncio
import contextlib
import json
import os
import queue
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from attune.eventlog.log import FEEDBACK
from attune.eventlog.sqlite import SqliteLogReader
from attune.personas.api_keys import local_api_key
from attune.runtime import read_endpoints
from attune.settings import API_KEY_VARIABLE
from attune.v1 import chat_pb2, chat_pb2_grpc, event_pb2, feedback_pb2, feedback_pb2_grpc
from bench.overload import percentile
from bench.serving import Server, environment, halves, interval, machine, running, write_section

CONNECTIONS = 8
RESPONSES = 50
STREAMS = 16
DEADLINE_SECONDS = 30.0
COMMENT = "It said that the cab was on its way, and it was not."
KINDS = {"idle": "nothing else", "streams": f"{STREAMS} running streams"}


@dataclass(frozen=True)
class Reading:
    """One load in one round, milliseconds."""

    a_second: float
    median_ms: float
    p99_ms: float
    # How late the 99th of 100 was sent: above a few milliseconds the clients themselves were too slow.
    late_p99_ms: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rate", type=float, default=500, help="feedback a second")
    arguments.add_argument("--seconds", type=float, default=10, help="of each load in each round")
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--threads", type=int, default=0, help="of the engine; 0: half of its cores")
    arguments.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "measurements.md")
    arguments.add_argument("--dry", action="store_true", help="print the section only")
    options = arguments.parse_args()

    server_cores, client_cores = halves()
    os.environ.update(environment(options.threads or max(1, len(server_cores) // 2)))
    readings: dict[tuple[str, str], list[Reading]] = {}
    with tempfile.TemporaryDirectory() as folder, running("attune", Path(folder), server_cores) as server:
        bench = Bench(server, Path(folder), server_cores, client_cores)
        load = [str(options.rate), str(options.seconds)]
        bench.ours(load)  # not counted: it makes the rows that the bare file gets, and warms up
        bench.keep_rows()
        for number in range(options.rounds):
            for kind in KINDS:
                with bench.streams() if kind == "streams" else contextlib.nullcontext():
                    # Each goes first in every second round.
                    for what in ("ours", "bare") if number % 2 else ("bare", "ours"):
                        reading = bench.ours(load) if what == "ours" else bench.bare(load)
                        readings.setdefault((what, kind), []).append(reading)
                        print(f"round {number + 1}: {what}, {kind}: {reading}", flush=True)
    section = report(readings, options, len(server_cores))
    print(section)
    if not options.dry:
        write_section(options.out, section)


class Bench:
    """The server, and processes that load it."""

    def __init__(self, server: Server, folder: Path, server_cores: set[int], client_cores: set[int]) -> None:
        self._data = server.data
        self._address = f"127.0.0.1:{read_endpoints(server.data, 'inference')['grpc']}"
        self._folder = folder
        self._rows = folder / "rows.json"
        self._server_cores = list(server_cores)
        self._client_cores = list(client_cores)
        self._environment = {**os.environ, API_KEY_VARIABLE: local_api_key(server.data)}

    def ours(self, load: Sequence[str]) -> Reading:
        return self._read(["submit", self._address, *load], self._client_cores)

    def bare(self, load: Sequence[str]) -> Reading:
        # On the same disk, and on the cores that the server has for the same work.
        return self._read(["commit", str(self._rows), *load], self._server_cores)

    def keep_rows(self) -> None:
        """Writes down what the server logged: key and payload of each feedback."""
        reader = SqliteLogReader(self._data / "spool")
        try:
            records = reader.read(FEEDBACK, 0, 0, 100_000, 1 << 30)
        finally:
            reader.close()
        self._rows.write_text(json.dumps([[record.key.hex(), record.payload.hex()] for record in records]))

    @contextlib.contextmanager
    def streams(self) -> Iterator[None]:
        process = self._start(["stream", self._address], self._client_cores)
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "streaming":
                sys.exit("the streams could not begin")
            yield
            if process.poll() is not None:
                sys.exit("the streams ended early")
        finally:
            process.kill()
            process.wait()

    def _read(self, arguments: Sequence[str], cores: Sequence[int]) -> Reading:
        process = self._start(arguments, cores)
        said, _ = process.communicate(timeout=600)
        if process.returncode:
            sys.exit(f"{arguments[0]} failed")
        return Reading(*json.loads(said))

    def _start(self, arguments: Sequence[str], cores: Sequence[int]) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.feedback", *arguments],
            stdout=subprocess.PIPE,
            env={**self._environment, "TMPDIR": str(self._folder)},
            text=True,
        )
        psutil.Process(process.pid).cpu_affinity(list(cores))
        return process


# What the other processes do.


async def submit(address: str, rate: float, seconds: float) -> Reading:
    """Sends feedback on a few responses, each time as another end user."""
    key = (("authorization", f"Bearer {os.environ[API_KEY_VARIABLE]}"),)
    run = f"{os.getpid()}-{time.monotonic_ns()}"
    options = [("grpc.use_local_subchannel_pool", 1)]
    took: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            for _ in range(CONNECTIONS)
        ]
        chat = chat_pb2_grpc.ChatServiceStub(channels[0])
        answers = await asyncio.gather(
            *(chat.Chat(chat_request(4), metadata=key, timeout=DEADLINE_SECONDS) for _ in range(RESPONSES))
        )
        stubs = [feedback_pb2_grpc.FeedbackServiceStub(channel) for channel in channels]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))

        async def one(number: int) -> None:
            request = feedback_pb2.SubmitFeedbackRequest(
                response_id=answers[number % RESPONSES].responses[0].response_id,
                end_user_id=f"{run}-{number}",
                client_feedback_id=f"{run}-{number}",
                thumb=event_pb2.THUMB_DOWN,
                comment=COMMENT,
            )
            asked = time.monotonic()
            await stubs[number % CONNECTIONS].SubmitFeedback(request, metadata=key, timeout=DEADLINE_SECONDS)
            took.append(time.monotonic() - asked)

        late: list[float] = []
        calls: list[asyncio.Task[None]] = []
        for number, planned in enumerate(times(rate, seconds)):
            if (early := planned - time.monotonic()) > 0:
                await asyncio.sleep(early)
            late.append(time.monotonic() - planned)
            calls.append(asyncio.create_task(one(number)))
        await asyncio.gather(*calls)
    return reading(took, late, seconds)


def commit(rows_file: Path, rate: float, seconds: float) -> Reading:
    """The least that it takes: rows into one table, all that wait in one commit."""
    rows = [(bytes.fromhex(key), bytes.fromhex(payload)) for key, payload in json.loads(rows_file.read_text())]
    waiting: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
    took: list[float] = []
    late: list[float] = []

    def write() -> None:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            last = False
            while not last:
                group = [waiting.get()]
                with contextlib.suppress(queue.Empty):
                    while True:
                        group.append(waiting.get_nowait())
                last = group[-1] is None
                found = [one for one in group if one is not None]
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(
                    "INSERT INTO records VALUES (?, ?, ?)", [(number, *rows[number % len(rows)]) for number, _ in found]
                )
                connection.execute("COMMIT")
                ended = time.monotonic()
                took.extend(ended - asked for _, asked in found)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bare.sqlite"
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE records (number INTEGER PRIMARY KEY, key BLOB, payload BLOB)")
        writer = threading.Thread(target=write)
        writer.start()
        for number, planned in enumerate(times(rate, seconds)):
            if (early := planned - time.monotonic()) > 0:
                time.sleep(early)
            asked = time.monotonic()
            late.append(asked - planned)
            waiting.put((number, asked))
        waiting.put(None)
        writer.join()
    return reading(took, late, seconds)


async def stream(address: str) -> None:
    """Keeps the streams running until it is killed."""
    key = (("authorization", f"Bearer {os.environ[API_KEY_VARIABLE]}"),)
    firsts = [asyncio.Event() for _ in range(STREAMS)]
    async with grpc.aio.insecure_channel(address) as channel:
        chat = chat_pb2_grpc.ChatServiceStub(channel)

        async def go(first: asyncio.Event) -> None:
            while True:
                async for _ in chat.StreamChat(chat_request(256), metadata=key):
                    first.set()

        running_streams = [asyncio.create_task(go(first)) for first in firsts]
        await asyncio.wait(
            {asyncio.gather(*(first.wait() for first in firsts)), *running_streams},
            return_when=asyncio.FIRST_COMPLETED,
        )
        print("streaming", flush=True)
        await asyncio.gather(*running_streams)


def chat_request(tokens: int) -> chat_pb2.ChatRequest:
    return chat_pb2.ChatRequest(
        messages=[event_pb2.Message(role=event_pb2.ROLE_USER, content="What can you tell me about the old town?")],
        sampling=event_pb2.Sampling(temperature=0.8, max_tokens=tokens),
    )


def times(rate: float, seconds: float) -> Iterator[float]:
    """When each is due, on the monotonic clock: as many people would, at random; the same in every run."""
    draw = random.Random(1)
    begun = due = time.monotonic() + 0.1
    while (due := due + draw.expovariate(rate)) < begun + seconds:
        yield due


def reading(took: Sequence[float], late: Sequence[float], seconds: float) -> Reading:
    took_ms, late_ms = ([each * 1000 for each in some] for some in (took, late))
    return Reading(len(took) / seconds, percentile(took_ms, 50), percentile(took_ms, 99), percentile(late_ms, 99))


# The report.


def report(readings: dict[tuple[str, str], list[Reading]], options: argparse.Namespace, server_cores: int) -> str:
    lines = [
        "## Feedback",
        "",
        f"`python -m bench.feedback`, {time.strftime('%Y-%m-%d')}. {machine()}",
        f"{options.rate:g} a second, each acknowledged once it is durable; server, and bare SQLite, on {server_cores} "
        f"cores. {options.rounds} rounds of {options.seconds:g} s a load: median of the rounds, with the 95 % interval "
        "of a bootstrap.",
        "",
        "| beside | what | a second | median, ms | p99, ms | sent late, p99, ms |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    names = {"bare": "bare SQLite, group commit of the same rows", "ours": "attune (gRPC)"}
    for kind, beside in KINDS.items():
        for what, name in names.items():
            found = readings[what, kind]
            cells = [
                interval([getattr(each, field) for each in found], digits)
                for field, digits in (("a_second", 0), ("median_ms", 1), ("p99_ms", 1), ("late_p99_ms", 1))
            ]
            lines.append(f"| {beside} | {name} | {' | '.join(cells)} |")
    lines += ["", "p99 of attune to that of bare SQLite with nothing else to do, in the same round:", ""]
    for kind, most in (("idle", 3), ("streams", 10)):
        pairs = zip(readings["ours", kind], readings["bare", "idle"], strict=True)
        ratio = interval([ours.p99_ms / bare.p99_ms for ours, bare in pairs], 2)
        lines.append(f"- beside {KINDS[kind]}: {ratio}; at most {most} is aimed at")
    return "\n".join(lines) + "\n"


def said(found: Reading) -> str:
    return json.dumps([found.a_second, found.median_ms, found.p99_ms, found.late_p99_ms])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["submit", address, rate, seconds]:
            print(said(asyncio.run(submit(address, float(rate), float(seconds)))))
        case ["commit", rows_file, rate, seconds]:
            print(said(commit(Path(rows_file), float(rate), float(seconds))))
        case ["stream", address]:
            asyncio.run(stream(address))
        case _:
            main()
