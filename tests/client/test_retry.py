"""What the SDK repeats and what it does not, against attune's real gRPC border."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from attune.client import AsyncClient, Client, Retry
from attune.client.errors import Cancelled, ServerError
from attune.client.retry import PATIENT
from attune.errors import (
    Aborted,
    AlreadyExists,
    AttuneError,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from attune.v1 import feedback_pb2
from tests.client import scripted_server
from tests.client.scripted_server import ScriptedChat
from tests.inference.waiting import eventually
from tests.keyed import key_store

QUICK = Retry(attempts=3, first_pause_seconds=0.01, longest_pause_seconds=0.5)

Ask = Callable[..., Awaitable[str]]
"""Says something by one of the four ways, and gives the answer's text."""


@pytest.fixture
def servicer() -> ScriptedChat:
    return ScriptedChat()


@pytest_asyncio.fixture
async def where(servicer: ScriptedChat, tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    store, api_key = key_store(tmp_path)
    server, address = await scripted_server.start(servicer, store)
    yield address, api_key
    await server.stop(None)


@pytest.fixture(params=["unary", "stream", "async unary", "async stream"])
def ask(request: pytest.FixtureRequest, where: tuple[str, str]) -> Ask:
    address, api_key = where

    async def asynchronous(text: str, *, seconds: float = 20, **fields: Any) -> str:
        async with AsyncClient(address, api_key=api_key, timeout_seconds=seconds, retry=QUICK) as client:
            if request.param == "async unary":
                return (await client.chat(text, **fields)).text
            return "".join([piece async for piece in client.stream(text, **fields)]).strip()

    def threaded(text: str, *, seconds: float = 20, **fields: Any) -> str:
        with Client(address, api_key=api_key, timeout_seconds=seconds, retry=QUICK) as client:
            if request.param == "unary":
                return client.chat(text, **fields).text
            return "".join(client.stream(text, **fields)).strip()

    async def in_a_thread(text: str, **fields: Any) -> str:
        return await asyncio.to_thread(threaded, text, **fields)

    return asynchronous if request.param.startswith("async") else in_a_thread


def full(seconds: float | None) -> ResourceExhausted:
    return ResourceExhausted("the server is full", retry_after_seconds=seconds)


async def test_what_may_pass_is_asked_again_as_the_same_request(ask: Ask, servicer: ScriptedChat) -> None:
    servicer.failures = [full(0.02), Unavailable("stopping")]
    assert await ask("hello") == "hello"
    assert len(servicer.requests) == 3
    (request_id,) = {request.client_request_id for request in servicer.requests}
    assert len(request_id) == 32


async def test_two_calls_have_two_ids_and_the_callers_own_is_kept(ask: Ask, servicer: ScriptedChat) -> None:
    for fields in ({}, {}, {"client_request_id": "mine"}):
        await ask("hello", **fields)
    ids = [request.client_request_id for request in servicer.requests]
    assert len(set(ids)) == 3
    assert ids[2] == "mine"


async def test_after_so_many_attempts_the_error_is_told(ask: Ask, servicer: ScriptedChat) -> None:
    servicer.failures = [Unavailable(f"failure {number}", retry_after_seconds=0.01) for number in range(9)]
    with pytest.raises(Unavailable, match="failure 2"):
        await ask("hello")
    assert len(servicer.requests) == QUICK.attempts


async def test_while_the_same_request_still_runs_it_is_asked_for_until_it_is_done(
    ask: Ask, servicer: ScriptedChat
) -> None:
    servicer.failures = [Aborted("still runs", retry_after_seconds=0.01) for _ in range(2 * QUICK.attempts)]
    assert await ask("hello") == "hello"
    assert len(servicer.requests) == 2 * QUICK.attempts + 1


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("no"),
        Unauthenticated("no"),
        PermissionDenied("no"),
        NotFound("no"),
        AlreadyExists("no"),
        FailedPrecondition("no"),
        DataLoss("no"),
        DeadlineExceeded("no"),
        full(None),
        full(QUICK.longest_pause_seconds + 0.1),
    ],
    ids=lambda error: f"{type(error).__name__} {error.retry_after_seconds}",
)
async def test_what_would_fail_again_is_told_at_once(ask: Ask, servicer: ScriptedChat, error: AttuneError) -> None:
    servicer.failures = [error]
    with pytest.raises(type(error)):
        await ask("hello")
    assert len(servicer.requests) == 1


async def test_an_unexplained_failure_of_the_server_is_not_repeated(ask: Ask, servicer: ScriptedChat) -> None:
    with pytest.raises(ServerError):
        await ask("!crash")
    assert len(servicer.requests) == 1


async def test_a_wait_that_the_deadline_does_not_leave_is_not_begun(ask: Ask, servicer: ScriptedChat) -> None:
    servicer.failures = [full(0.4)]
    with pytest.raises(ResourceExhausted):
        await ask("hello", seconds=0.3)
    assert len(servicer.requests) == 1


async def test_the_deadline_is_for_all_attempts_together(ask: Ask, servicer: ScriptedChat) -> None:
    servicer.failures = [Aborted("still runs", retry_after_seconds=0.05) for _ in range(1000)]
    with pytest.raises((Aborted, DeadlineExceeded)):
        await ask("hello", seconds=0.5)
    assert len(servicer.requests) <= 11


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
async def test_a_stream_that_gave_text_is_not_repeated(
    where: tuple[str, str], servicer: ScriptedChat, asynchronous: bool
) -> None:
    pieces: list[str] = []

    def in_a_thread() -> None:
        with Client(where[0], api_key=where[1], retry=QUICK) as client, client.stream("one !fall") as stream:
            pieces.extend(stream)

    async def in_the_loop() -> None:
        async with AsyncClient(where[0], api_key=where[1], retry=QUICK) as client:
            async for piece in client.stream("one !fall"):
                pieces.append(piece)  # noqa: PERF401 - what came before the failure counts

    with pytest.raises(Unavailable, match="the engine failed"):
        await (in_the_loop() if asynchronous else asyncio.to_thread(in_a_thread))
    assert pieces == ["one "]
    assert len(servicer.requests) == 1


async def test_cancelling_ends_a_pause(where: tuple[str, str], servicer: ScriptedChat) -> None:
    patient = Retry(longest_pause_seconds=60)
    servicer.failures = [full(50.0), full(50.0)]
    async with AsyncClient(where[0], api_key=where[1], timeout_seconds=300, retry=patient) as client:
        stream = client.stream("hello")
        reading = asyncio.create_task(anext(aiter(stream)))
        await eventually(lambda: len(servicer.requests) == 1)
        stream.cancel()
        with pytest.raises(Cancelled):
            await asyncio.wait_for(reading, 20)

    def in_a_thread() -> None:
        with (
            Client(where[0], api_key=where[1], timeout_seconds=300, retry=patient) as client,
            client.stream("hello") as stream,
        ):
            streams.append(stream)
            list(stream)

    streams: list[Any] = []
    reading_thread = asyncio.create_task(asyncio.to_thread(in_a_thread))
    await eventually(lambda: len(servicer.requests) == 2 and len(streams) == 1)
    streams[0].cancel()
    with pytest.raises(Cancelled):
        await asyncio.wait_for(reading_thread, 20)
    assert len(servicer.requests) == 2


async def test_feedback_is_repeated_under_one_id_and_the_callers_message_is_left_alone(
    where: tuple[str, str], servicer: ScriptedChat
) -> None:
    request = feedback_pb2.SubmitFeedbackRequest(feedback_token="token", rating=5)
    async with AsyncClient(where[0], api_key=where[1], retry=QUICK) as client:
        for _ in range(2):
            servicer.failures = [Unavailable("stopping"), full(0.01)]
            await client.submit(request)
    ids = [vote.client_feedback_id for vote in servicer.feedback]
    assert ids == [ids[0]] * 3 + [ids[3]] * 3
    assert ids[0] != ids[3]
    assert request.client_feedback_id == ""


async def test_nobody_there_is_tried_again_and_somebody_may_have_come(servicer: ScriptedChat, tmp_path: Path) -> None:
    store, api_key = key_store(tmp_path)
    server, address = await scripted_server.start(servicer, store)
    await server.stop(None)
    patient = Retry(attempts=100, first_pause_seconds=0.05, longest_pause_seconds=0.1)
    async with AsyncClient(address, api_key=api_key, timeout_seconds=30, retry=patient) as client:
        asking = asyncio.create_task(client.chat("hello"))
        server, _ = await scripted_server.start(servicer, store, port=int(address.rpartition(":")[2]))
        assert (await asking).text == "hello"
    await server.stop(None)


def test_pauses_are_never_shorter_than_told_and_are_spread() -> None:
    assert [PATIENT.pause_seconds(full(4), 1, drawn) for drawn in (0, 1)] == [4, 5]
    assert [PATIENT.pause_seconds(Aborted("", retry_after_seconds=1), 99, drawn) for drawn in (0, 1)] == [1, 1.25]
    assert [PATIENT.pause_seconds(Unavailable(""), failures, 1) for failures in (1, 2, 3, 4, 5)] == [
        0.2,
        0.4,
        0.8,
        1.6,
        None,
    ]
    assert PATIENT.pause_seconds(Unavailable(""), 4, 0) == 0
    assert Retry(attempts=2000).pause_seconds(Unavailable(""), 1000, 1) == PATIENT.longest_pause_seconds
    assert Retry(attempts=1).pause_seconds(Aborted(""), 0, 0) is None


@pytest.mark.parametrize(
    "fields", [{"attempts": 0}, {"first_pause_seconds": 0}, {"first_pause_seconds": 30}, {"longest_pause_seconds": 0.1}]
)
def test_a_patience_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="must be"):
        Retry(**fields)
