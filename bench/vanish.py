"""Measures clients that vanish: `python -m bench.vanish`.

Clients connect, each over a connection of its own, half of them over gRPC and half over HTTP, begin a long answer, read
its first piece, and are killed, 50 at a time, 1,000 in all; then 1,000 more, so that what is left behind shows as
growth. At last 50 are frozen: their connections stay, and nobody is there (half open). Afterwards no call may hold a
place in the engine, and descriptors, threads and memory should be what they were. Writes the section `Vanished clients`
of docs/measurements.md.
"""

# ruff: noqa: T201 - it talks to the terminal, and its processes to each other

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import grpc
import psutil

from attune.eventlog.log import RESPONSES
from attune.eventlog.sqlite import SqliteLogReader
from attune.personas.api_keys import local_api_key
from attune.runtime import read_endpoints
from attune.settings import API_KEY_VARIABLE
from attune.v1 import chat_pb2, chat_pb2_grpc, event_pb2
from bench.overload import Footprint, footprint, in_flight
from bench.serving import PERSONA, Server, environment, halves, machine, running, write_section

# Long enough that none has ended when its client is killed.
OUTPUT_TOKENS = 900
WAVE = 50
START_SECONDS = 60.0
# A half-open connection is found after 20 s of silence
# and 10 s without an answer to a ping (gRPC), or closed after 75 s without another request (HTTP).
FREE_SECONDS = 120.0
TEXT = "What can you tell me about the old town?"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--clients", type=int, default=1000, help="in each of the two rounds")
    arguments.add_argument("--threads", type=int, default=0, help="of the engine; 0: half of its cores")
    arguments.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "measurements.md")
    arguments.add_argument("--dry", action="store_true", help="print the section only")
    options = arguments.parse_args()

    server_cores, client_cores = halves()
    os.environ.update(environment(options.threads or max(1, len(server_cores) // 2)))
    with tempfile.TemporaryDirectory() as folder, running("attune", Path(folder), server_cores) as server:
        crowd = Crowd(server, client_cores)
        rounds = [crowd.vanish(WAVE)]  # the first ones fill caches
        for _ in range(2):
            rounds.append(crowd.vanish(options.clients))
            print(rounds[-1], flush=True)
        frozen = crowd.freeze()
        ended = crowd.ended()
    section = report(options.clients, rounds, frozen, ended)
    print(section)
    if not options.dry:
        write_section(options.out, section)


class Crowd:
    """Clients in processes of their own."""

    def __init__(self, server: Server, cores: set[int]) -> None:
        endpoints = read_endpoints(server.data, "inference")
        self._server = server
        self._descriptors = 0
        self._cores = list(cores)
        self._command = [sys.executable, "-m", "bench.vanish", "begin"]
        self._command += [f"127.0.0.1:{endpoints['grpc']}", str(endpoints["http"]), str(WAVE)]
        self._environment = {**os.environ, API_KEY_VARIABLE: local_api_key(server.data)}

    def vanish(self, clients: int) -> tuple[Footprint, float, int]:
        """So many begin and are killed; what the server holds then, after how many seconds, and the calls left."""
        for _ in range(clients // WAVE):
            process = self._begun()
            process.kill()
            process.wait()
        return self._look()

    def freeze(self) -> tuple[Footprint, float, int]:
        """The same for clients that stay, and do nothing."""
        process = self._begun()
        process.send_signal(signal.SIGSTOP)
        try:
            return self._look()
        finally:
            process.kill()
            process.wait()

    def _look(self) -> tuple[Footprint, float, int]:
        """Once the server has let go of all calls and connections, or has taken too long."""
        begun = time.monotonic()
        while (left := in_flight(self._server.data)) and time.monotonic() - begun < FREE_SECONDS:
            time.sleep(0.1)
        if not self._descriptors:
            time.sleep(2)  # the first time nobody knows how many there were; sockets are closed a moment later
            self._descriptors = self._server.front.num_fds()
        while self._server.front.num_fds() > self._descriptors and time.monotonic() - begun < FREE_SECONDS:
            time.sleep(0.1)
        return footprint(self._server), time.monotonic() - begun, left

    def ended(self) -> "Counter[str]":
        """How the logged responses ended."""
        reader = SqliteLogReader(self._server.data / "spool")
        try:
            records = reader.read(RESPONSES, 0, 0, 1_000_000, 1 << 30)
        finally:
            reader.close()
        reasons = (event_pb2.ResponseEvent.FromString(record.payload).finish_reason for record in records)
        return Counter(event_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower() for reason in reasons)

    def _begun(self) -> "subprocess.Popen[str]":
        """A process whose clients all have the first piece of their answer."""
        process = subprocess.Popen(self._command, stdout=subprocess.PIPE, env=self._environment, text=True)
        psutil.Process(process.pid).cpu_affinity(self._cores)
        assert process.stdout is not None
        if process.stdout.readline().strip() != "begun":
            process.kill()
            sys.exit("the clients could not begin")
        return process


# What the client processes do.


async def begin(address: str, http_port: int, count: int) -> None:
    """Begins, says so, and reads on until it is killed."""
    key = os.environ[API_KEY_VARIABLE]
    loop = asyncio.get_running_loop()
    firsts: list[asyncio.Future[None]] = [loop.create_future() for _ in range(count)]
    reading = [
        asyncio.create_task(over_http(http_port, key, first) if number % 2 else over_grpc(address, key, first))
        for number, first in enumerate(firsts)
    ]
    done, _ = await asyncio.wait(
        {asyncio.gather(*firsts), *reading}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED
    )
    if all(first.done() for first in firsts):
        print("begun", flush=True)
        await asyncio.wait(reading)
    for task in done:
        task.result()


async def over_grpc(address: str, key: str, first: "asyncio.Future[None]") -> None:
    request = chat_pb2.ChatRequest(
        messages=[event_pb2.Message(role=event_pb2.ROLE_USER, content=TEXT)],
        sampling=event_pb2.Sampling(temperature=0.8, max_tokens=OUTPUT_TOKENS),
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        async for _ in stub.StreamChat(request, metadata=(("authorization", f"Bearer {key}"),)):
            if not first.done():
                first.set_result(None)


async def over_http(port: int, key: str, first: "asyncio.Future[None]") -> None:
    body = {
        "model": PERSONA,
        "messages": [{"role": "user", "content": TEXT}],
        "temperature": 0.8,
        "max_tokens": OUTPUT_TOKENS,
        "stream": True,
    }
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + data)
    while line := await reader.readline():
        if line.startswith(b"data: ") and not first.done():
            first.set_result(None)


# The report.


def report(
    clients: int,
    rounds: list[tuple[Footprint, float, int]],
    frozen: tuple[Footprint, float, int],
    ended: "Counter[str]",
) -> str:
    lines = [
        "## Vanished clients",
        "",
        f"`python -m bench.vanish`, {time.strftime('%Y-%m-%d')}. {machine()}",
        f"{clients:,} clients begin an answer of {OUTPUT_TOKENS} tokens, {WAVE} at a time, half of them over gRPC and "
        f"half over HTTP, and are killed; twice. Then {WAVE} are frozen while they read.",
        "",
        "| after | calls in flight | calls and connections gone after, s | descriptors | threads | front end, MiB "
        "| with the engine, MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    names = (f"{WAVE} clients (warm)", f"{clients:,} more", f"{clients:,} more", f"{WAVE} frozen ones")
    for name, (held, seconds, left) in zip(names, [*rounds, frozen], strict=True):
        lines.append(
            f"| {name} | {left} | {seconds:.1f} | {held.descriptors} | {held.threads} | {held.front_mib:.0f} "
            f"| {held.whole_mib:.0f} |"
        )
    told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(ended.items()))
    lines += ["", f"Of the {2 * (clients + WAVE):,} answers that were begun the log holds: {told}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["begin", address, http_port, count]:
            asyncio.run(begin(address, int(http_port), int(count)))
        case _:
            main()
