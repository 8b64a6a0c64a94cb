"""The service as a process: how it starts, drains, and ends."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from attune.eventlog.log import RESPONSES
from attune.eventlog.sqlite import SqliteLogReader
from attune.personas.api_keys import local_api_key
from attune.runtime import read_endpoints
from attune.v1 import chat_pb2_grpc, event_pb2
from tests.inference.house import ask
from tests.keyed import key_store, keyed_channel

START_SECONDS = 180


@dataclass
class Service:
    data: Path
    process: subprocess.Popen[bytes]
    channel: grpc.aio.Channel
    stub: Any
    health: Any

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def responses(self) -> list[event_pb2.ResponseEvent]:
        reader = SqliteLogReader(self.data / "spool")
        try:
            records = reader.read(RESPONSES, 0, 0, 10_000, 1 << 30)
        finally:
            reader.close()
        return [event_pb2.ResponseEvent.FromString(record.payload) for record in records]

    async def exit_code(self, seconds: float) -> int:
        return await asyncio.to_thread(self.process.wait, seconds)


@contextlib.asynccontextmanager
async def launched(data: Path, **environment: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """The process, which may not be up yet."""
    process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
        [sys.executable, "-m", "attune.inference.main"],
        env={
            **os.environ,
            "ATTUNE_DATA": str(data),
            "ATTUNE_INFERENCE__GRPC_PORT": "0",
            "ATTUNE_INFERENCE__HTTP_PORT": "0",
            "ATTUNE_INFERENCE__METRICS_PORT": "0",
            **environment,
        },
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.asynccontextmanager
async def started(data: Path, **environment: str) -> AsyncIterator[Service]:
    async with launched(data, **environment) as process:
        deadline = time.monotonic() + START_SECONDS
        while not (data / "run" / "inference.json").exists():
            assert process.poll() is None, "it ended before it was up"
            assert time.monotonic() < deadline, "it did not come up in time"
            await asyncio.sleep(0.1)
        port = read_endpoints(data, "inference")["grpc"]
        async with keyed_channel(f"127.0.0.1:{port}", local_api_key(data)) as channel:
            stub = chat_pb2_grpc.ChatServiceStub(channel)
            yield Service(data, process, channel, stub, health_pb2_grpc.HealthStub(channel))


def name_of(process: psutil.Process) -> str:
    """Its command line; nothing of one that has gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


async def last(call: Any) -> Any:
    """The last message of a stream; raises as the call ended."""
    message = None
    while (read := await call.read()) is not grpc.aio.EOF:
        message = read
    return message


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


async def all_gone(processes: list[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not gone(processes):
        assert time.monotonic() < deadline, f"still there: {processes}"
        await asyncio.sleep(0.05)


@pytest.mark.timeout(600)
async def test_sigterm_lets_running_streams_finish_and_refuses_new_calls(tmp_path: Path) -> None:
    async with started(tmp_path) as service:
        engine = service.descendants()
        request = ask("What is the capital of France?", persona="tutor")
        running = [service.stub.StreamChat(request) for _ in range(48)]
        for call in running:
            await call.read()
        service.process.send_signal(signal.SIGTERM)
        ends = [await last(call) for call in running]
        assert all(end.HasField("end") for end in ends)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await service.stub.Chat(ask(), timeout=10)
            pytest.fail("a call was taken while draining")
        assert await service.exit_code(30) == 0
        await all_gone(engine, 5)
        logged = [event.finish_reason for event in service.responses()]
        assert logged.count(event_pb2.FINISH_REASON_ABORTED) == 0
        assert len(logged) == 48


@pytest.mark.timeout(600)
async def test_sigterm_while_the_engine_starts_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    async with launched(tmp_path) as process:
        deadline = time.monotonic() + START_SECONDS
        engine: list[psutil.Process] = []
        while not any("EngineCore" in name_of(child) for child in engine):
            assert process.poll() is None, "it ended before its engine was there"
            assert time.monotonic() < deadline, "no engine was started in time"
            await asyncio.sleep(0.02)
            engine = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 5) == 0
        await all_gone(engine, 5)
        assert not (tmp_path / "run" / "inference.json").exists()


@pytest.mark.timeout(600)
async def test_a_killed_engine_shows_in_health_and_ends_the_process_for_a_restart(tmp_path: Path) -> None:
    async with started(tmp_path) as service:
        watch = service.health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        (core,) = [child for child in service.descendants() if "EngineCore" in " ".join(child.cmdline())]
        running = [service.stub.StreamChat(ask("tell me a story", persona="tutor")) for _ in range(16)]
        for call in running:
            await call.read()
        killed = time.monotonic()
        core.kill()
        with contextlib.suppress(grpc.aio.AioRpcError):
            while (answer := await watch.read()) is not grpc.aio.EOF:
                if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    break
        assert time.monotonic() - killed < 5
        for call in running:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await last(call)
        assert {await call.code() for call in running} <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert await service.exit_code(30) == 1
        assert len(service.responses()) == 16


@pytest.mark.timeout(600)
async def test_kill_9_leaves_no_orphans_and_the_log_opens_clean(tmp_path: Path) -> None:
    async with started(tmp_path) as service:
        acknowledged = await service.stub.Chat(ask(), timeout=60)
        children = service.descendants()
        assert children
        service.process.kill()
        service.process.wait()
        await all_gone(children, 5)
        assert acknowledged.responses[0].response_id in [event.response_id for event in service.responses()]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"ATTUNE_PERSONAS": "/nowhere"}, "no persona here"),
        ({"ATTUNE_DEFAULT_PERSONA": "nobody"}, "default_persona is nobody; "),
        ({"ATTUNE_MODEL": "/nowhere"}, "/nowhere"),
        ({"ATTUNE_INFERENCE__HOST": "192.0.2.1"}, "cannot listen on 192.0.2.1:0"),
    ],
    ids=["personas", "default persona", "model", "address"],
)
def test_what_it_cannot_start_with_is_said_in_a_sentence(
    tmp_path: Path, environment: dict[str, str], sentence: str
) -> None:
    key_store(tmp_path)  # without one it says so first, for an address that is open to others
    ended = subprocess.run(
        [sys.executable, "-m", "attune.inference.main"],
        env={
            **os.environ,
            "ATTUNE_DATA": str(tmp_path),
            "ATTUNE_INFERENCE__GRPC_PORT": "0",
            "ATTUNE_INFERENCE__HTTP_PORT": "0",
            "ATTUNE_INFERENCE__METRICS_PORT": "0",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
