"""More than the server takes, and clients that are gone: refusals say when to come back, and nothing is left behind."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2

from attune.access import KeyLimits, Role
from attune.chat.template import ChatTemplate
from attune.inference.engine import Engine
from tests.inference.house import House, ask, endless
from tests.inference.waiting import eventually
from tests.keyed import metadata

PLACES = 4
CLIENTS = 32


@pytest_asyncio.fixture
async def small(tmp_path: Path, engine: Engine, template: ChatTemplate, demo_model: Path) -> AsyncIterator[House]:
    """It takes four answers at once; they go on to max_tokens."""
    async with House.open(tmp_path, endless(engine), template, demo_model, max_concurrent=PLACES) as house:
        yield house


async def test_ten_times_as_many_calls_as_it_takes_are_refused_and_the_running_ones_finish(small: House) -> None:
    running = [small.stub.StreamChat(ask(max_tokens=600)) for _ in range(PLACES)]
    for call in running:
        await call.read()
    refusals = await asyncio.gather(*(refusal(small.stub.Chat(ask(), timeout=60)) for _ in range(9 * PLACES)))
    assert {error.code() for error in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    for error in refusals:
        assert f"this server takes {PLACES} at once" in str(error.details())
        retry, quota = details(error)
        assert retry.retry_delay.seconds == 1
        assert quota.violations[0].subject == "server"
    answer = await small.health.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    for call in running:
        assert [chunk async for chunk in call][-1].HasField("end")
    assert len(small.responses()) == PLACES
    await eventually(lambda: small.chat.admission.running == 0)
    assert small.engine.unfinished == 0


async def test_whoever_comes_back_when_told_to_is_answered(small: House) -> None:
    async def insist() -> None:
        while True:
            try:
                await small.stub.Chat(ask(max_tokens=16), timeout=60)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                await asyncio.sleep(details(error)[0].retry_delay.ToTimedelta().total_seconds())
            else:
                return

    await asyncio.gather(*(insist() for _ in range(5 * PLACES)))
    assert len(small.responses()) == 5 * PLACES


async def test_alternatives_count_as_so_many_answers(small: House) -> None:
    request = ask(max_tokens=600)
    request.alternatives = PLACES
    call = small.stub.StreamChat(request)
    await call.read()
    error = await refusal(small.stub.Chat(ask(), timeout=60))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    call.cancel()
    await eventually(lambda: small.chat.admission.running == 0)
    assert (await small.stub.Chat(ask(max_tokens=4), timeout=60)).responses


async def test_a_key_over_its_rate_is_refused_by_name_and_the_others_are_not(house: House) -> None:
    limited = house.access.create("default", (Role.CHAT,), limits=KeyLimits(requests_per_minute=1))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{house.port}") as channel:
        stub: Any = house.stub.__class__(channel)
        await stub.Chat(ask(max_tokens=2), metadata=metadata(limited), timeout=60)
        error = await refusal(stub.Chat(ask(max_tokens=2), metadata=metadata(limited), timeout=60))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    retry, quota = details(error)
    assert quota.violations[0].subject == "requests_per_minute"
    assert 0 < retry.retry_delay.seconds < 60
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{house.http_port}", timeout=60) as http:
        body = {"model": "concierge", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        headers = {"authorization": f"Bearer {limited}"}
        refused = await http.post("/v1/chat/completions", json=body, headers=headers)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["param"] == "requests_per_minute"
    assert (await house.stub.Chat(ask(max_tokens=2), timeout=60)).responses


async def test_clients_that_vanish_leave_nothing_behind(endless_house: House) -> None:
    house = endless_house
    await vanish(house)  # what the first ones leave is kept for good: threads, pollers, caches
    await idle(house)
    tasks, descriptors = len(asyncio.all_tasks()), psutil.Process().num_fds()
    for _ in range(3):
        await vanish(house)
    await idle(house)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
    await eventually(lambda: psutil.Process().num_fds() <= descriptors)
    assert len(house.responses()) == 4 * CLIENTS
    assert (await house.stub.Chat(ask(max_tokens=4), timeout=60)).responses


async def vanish(house: House) -> None:
    """Clients over gRPC and HTTP that are killed in the middle of their answers."""
    arguments = [str(house.port), str(house.http_port), house.api_key, str(CLIENTS)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.inference.crowd", *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"begun\n"
    finally:
        process.kill()
        await process.wait()


async def idle(house: House) -> None:
    await eventually(lambda: house.chat.admission.running == 0, seconds=30)
    await house.chat.settle()
    assert house.engine.unfinished == 0


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("it was not refused")


def details(error: grpc.aio.AioRpcError) -> tuple[Any, Any]:
    """RetryInfo and QuotaFailure."""
    retry, quota = error_details_pb2.RetryInfo(), error_details_pb2.QuotaFailure()
    packed = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    found = status_pb2.Status.FromString(packed).details
    assert any(detail.Unpack(retry) for detail in found)
    assert any(detail.Unpack(quota) for detail in found)
    return retry, quota
