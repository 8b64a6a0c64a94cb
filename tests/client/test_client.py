import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from attune.client import AsyncClient, Client, Retry
from attune.client.errors import Cancelled, ServerError
from attune.client.request import chat_request
from attune.errors import (
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from attune.personas.api_keys import KeyStore
from attune.v1 import event_pb2
from tests.client import scripted_server
from tests.client.scripted_server import ScriptedChat
from tests.keyed import key_store


@pytest.fixture
def servicer() -> ScriptedChat:
    return ScriptedChat()


@pytest.fixture
def keys(tmp_path: Path) -> tuple[KeyStore, str]:
    return key_store(tmp_path)


@pytest.fixture
def api_key(keys: tuple[KeyStore, str]) -> str:
    return keys[1]


@pytest_asyncio.fixture
async def address(servicer: ScriptedChat, keys: tuple[KeyStore, str]) -> AsyncIterator[str]:
    server, address = await scripted_server.start(servicer, keys[0])
    yield address
    await server.stop(None)


@pytest_asyncio.fixture
async def client(address: str, api_key: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(address, api_key=api_key, timeout_seconds=20, retry=Retry(attempts=1)) as client:
        yield client


async def test_an_answer_carries_what_the_server_said_of_it(client: AsyncClient, servicer: ScriptedChat) -> None:
    answer = await client.chat("good morning", persona="tutor", temperature=0.25, stop=["x"], end_user_id="ann")
    assert (answer.text, answer.response_id, answer.policy_id) == ("good morning", "r-1", "base")
    assert (answer.conversation_id, answer.finish_reason, answer.feedback_token) == ("c-1", "stop", "token")
    assert (answer.usage.prompt_tokens, answer.usage.output_tokens) == (1, 2)
    (request,) = servicer.requests
    assert (request.persona, request.end_user_id, request.sampling.temperature) == ("tutor", "ann", 0.25)
    assert list(request.sampling.stop) == ["x"]
    assert not request.sampling.HasField("top_p")
    assert not request.consent.HasField("store")


async def test_a_stream_gives_text_as_it_comes_and_then_the_response(
    client: AsyncClient, servicer: ScriptedChat
) -> None:
    async with client.stream("one two three", conversation_id="mine") as stream:
        with pytest.raises(Unavailable, match="not ended"):
            _ = stream.response
        pieces = []
        async for piece in stream:
            assert stream.policy_id == "base"
            pieces.append(piece)
    assert pieces == ["one ", "two ", "three "]
    assert stream.response.text == "one two three "
    assert stream.response.conversation_id == "mine"
    assert stream.response.finish_reason == "length"
    assert await stream.response.up() == "f-1"
    assert servicer.feedback[0].feedback_token == "token"


async def test_the_client_for_threads_does_the_same(address: str, api_key: str, servicer: ScriptedChat) -> None:
    def talk() -> None:
        with Client(address, api_key=api_key, timeout_seconds=20, retry=Retry(attempts=1)) as client:
            answer = client.chat([{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}])
            assert answer.text == "hello"
            assert answer.down("too short") == "f-1"
            with client.stream("a b") as stream:
                assert list(stream) == ["a ", "b "]
            assert stream.response.up() == "f-2"
            with pytest.raises(NotFound, match="no such persona"):
                list(client.stream("x", persona="nobody"))
            with pytest.raises(Unavailable, match="broke off"):
                list(client.stream("a !broken"))
            with client.stream("a !hang") as stream:
                assert next(iter(stream)) == "a "
                stream.cancel()
                with pytest.raises(Cancelled):
                    list(stream)

    await asyncio.to_thread(talk)
    assert [(vote.thumb, vote.comment) for vote in servicer.feedback] == [
        (event_pb2.THUMB_DOWN, "too short"),
        (event_pb2.THUMB_UP, ""),
    ]
    await asyncio.wait_for(servicer.aborted.wait(), 10)


async def test_errors_come_back_as_they_were_raised(client: AsyncClient) -> None:
    with pytest.raises(NotFound) as missing:
        await client.chat("x", persona="nobody")
    assert (missing.value.message, missing.value.field) == ("no such persona", None)
    with pytest.raises(ResourceExhausted) as full:
        await client.chat("!full")
    assert (full.value.message, full.value.retry_after_seconds) == ("the server is full", 1.5)
    with pytest.raises(ServerError, match="INTERNAL internal error"):
        await client.chat("!crash")


async def test_a_deadline_that_passes_is_an_error_of_its_own(client: AsyncClient) -> None:
    with pytest.raises(DeadlineExceeded, match="before the deadline"):
        await client.chat("!hang", timeout_seconds=0.2)
    with pytest.raises(DeadlineExceeded):
        _ = [piece async for piece in client.stream("a !hang", timeout_seconds=0.2)]


async def test_a_stream_without_its_last_message_was_not_acknowledged(client: AsyncClient) -> None:
    stream = client.stream("a b !broken")
    with pytest.raises(Unavailable, match="not acknowledged"):
        _ = [piece async for piece in stream]
    with pytest.raises(Unavailable, match="not ended"):
        _ = stream.response


async def test_cancelling_a_stream_stops_the_server_and_is_not_a_cancellation_of_the_reader(
    client: AsyncClient, servicer: ScriptedChat
) -> None:
    stream = client.stream("a !hang")

    async def read() -> None:
        async for _ in stream:
            stream.cancel()

    with pytest.raises(Cancelled):
        await read()
    await asyncio.wait_for(servicer.aborted.wait(), 10)


async def test_cancelling_the_reader_cancels_the_call(client: AsyncClient, servicer: ScriptedChat) -> None:
    begun = asyncio.Event()

    async def read() -> None:
        async with client.stream("a !hang") as stream:
            async for _ in stream:
                begun.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(begun.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(servicer.aborted.wait(), 10)


async def test_nobody_there_is_said_with_the_address() -> None:
    async with AsyncClient("127.0.0.1:1", timeout_seconds=20, retry=Retry(attempts=1)) as client:
        with pytest.raises(Unavailable, match=r"cannot reach 127\.0\.0\.1:1"):
            await client.chat("hello")


async def test_a_response_that_was_not_stored_takes_no_feedback(client: AsyncClient, servicer: ScriptedChat) -> None:
    answer = await client.chat("hello", may_store=False, may_train=True)
    assert servicer.requests[0].consent.train
    with pytest.raises(InvalidInput, match="not stored"):
        await answer.up()
    assert servicer.feedback == []


@pytest.mark.parametrize(
    ("messages", "fields", "complaint"),
    [
        ([{"role": "wizard", "content": "x"}], {}, "a message's role is one of system, user, assistant, tool"),
        ([{"role": "user"}], {}, "a message has no content"),
        ("x", {"top_k": -1}, "does not fit"),
        ("x", {"seed": 1 << 65}, "does not fit"),
        ("x", {"temperature": "warm"}, "does not fit"),
        ("x", {"metadata": {"key": 1}}, "does not fit"),
        ("x", {"colour": "red"}, "does not fit"),
        ("\ud800", {}, "does not fit"),
    ],
)
def test_what_does_not_fit_into_a_message_is_refused_before_it_is_sent(
    messages: object, fields: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        chat_request(messages, fields)  # type: ignore[arg-type]
