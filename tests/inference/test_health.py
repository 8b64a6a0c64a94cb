"""Health says the truth about a frozen engine within seconds, and is not fooled by load or a swap."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2

from attune.chat.template import ChatTemplate
from attune.inference.engine import Engine
from tests.inference.house import PERSONAS, House, ask, endless
from tests.inference.waiting import eventually

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("", "attune.v1.ChatService", "attune.v1.FeedbackService")


@pytest_asyncio.fixture
async def watched(tmp_path: Path, engine: Engine, template: ChatTemplate, demo_model: Path) -> AsyncIterator[House]:
    """A service whose tasks run, as main runs them; its answers go on to max_tokens."""
    async with House.open(tmp_path, endless(engine), template, demo_model) as house:
        stopping = asyncio.Event()
        running = asyncio.create_task(house.server.run(stopping))
        yield house
        stopping.set()
        await running


async def state(house: House, service: str = "") -> int:
    answer = await house.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return int(answer.status)


async def becomes(house: House, wanted: int, seconds: float) -> float:
    """How long it took until health said so."""
    begun = time.monotonic()
    while await state(house) != wanted:
        assert time.monotonic() - begun < seconds, "health did not change in time"
        await asyncio.sleep(0.05)
    return time.monotonic() - begun


@contextlib.contextmanager
def frozen(engine: Engine) -> Iterator[None]:
    processes = [core.pid for core in engine._cores]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


async def test_health_knows_each_service_and_no_other(watched: House) -> None:
    for service in SERVICES:
        assert await state(watched, service) == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await state(watched, "nobody")
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND


async def test_an_idle_engine_is_probed_and_nothing_is_logged(watched: House) -> None:
    seen = watched.engine.last_move_seconds
    for _ in range(2):
        await eventually(lambda: watched.engine.last_move_seconds > seen)  # noqa: B023 - waited for at once
        seen = watched.engine.last_move_seconds
    assert await state(watched) == SERVING
    assert watched.responses() == []


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "under load"])
async def test_a_frozen_engine_is_not_serving_within_five_seconds_and_serves_again(watched: House, busy: bool) -> None:
    calls = [watched.stub.StreamChat(ask(max_tokens=900)) for _ in range(16 * busy)]
    for call in calls:
        await call.read()
    with frozen(watched.engine):
        assert await becomes(watched, NOT_SERVING, 5) < 5
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await watched.stub.Chat(ask(), timeout=5)
        assert refusal.value.code() == grpc.StatusCode.UNAVAILABLE
    await becomes(watched, SERVING, 10)
    for call in calls:
        call.cancel()
    assert (await watched.stub.Chat(ask(max_tokens=2), timeout=60)).responses


async def test_load_does_not_look_like_a_failure(watched: House) -> None:
    watch = watched.health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    long = ask("word " * 300, max_tokens=150)
    calls = [asyncio.create_task(watched.stream(long)) for _ in range(64)]
    changed = asyncio.create_task(watch.read())
    await asyncio.wait(calls)
    assert not changed.done()
    assert all(call.result()[-1].HasField("end") for call in calls)
    changed.cancel()


async def test_a_swap_does_not_look_like_a_failure(watched: House, adapter: Callable[[int], Path]) -> None:
    watch = watched.health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    changed = asyncio.create_task(watch.read())
    for seed in (1, 2, 3):
        policy_id = await watched.publish(adapter(seed))
        watched.roll_out((policy_id, 1.0))
        await eventually(lambda: watched.policies.serving(PERSONAS["concierge"])[0][0] == policy_id, seconds=60)  # noqa: B023
        assert (await watched.stub.Chat(ask(max_tokens=2), timeout=60)).responses[0].policy_id == policy_id
    assert not changed.done()
    changed.cancel()
