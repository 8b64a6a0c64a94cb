"""The border: whatever happens in a handler, the caller gets a documented status, and nothing of the inside."""

import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY

from attune import errors, rpc
from attune.access import Caller
from attune.border import Gated
from attune.errors import AttuneError, FailedPrecondition, InvalidInput, ResourceExhausted
from attune.v1 import chat_pb2, chat_pb2_grpc
from tests.inference.waiting import eventually
from tests.keyed import key_store, keyed_channel

SECRET = "what the caller wrote"


class Handlers(chat_pb2_grpc.ChatServiceServicer, Gated):
    """Does what the request's persona says."""

    refusal: Exception | None = None

    def check_room(self, caller: Caller) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def Chat(self, request: chat_pb2.ChatRequest, context: Any) -> chat_pb2.ChatResponse:
        await _act(request.persona, context)
        return chat_pb2.ChatResponse(conversation_id="c")

    async def StreamChat(self, request: chat_pb2.ChatRequest, context: Any) -> AsyncIterator[chat_pb2.ChatChunk]:
        yield chat_pb2.ChatChunk(text="first")
        await _act(request.persona, context)
        yield chat_pb2.ChatChunk(text="second")


async def _act(what: str, context: Any) -> None:
    match what:
        case "crash":
            raise RuntimeError(SECRET)
        case "stray cancel":
            raise asyncio.CancelledError
        case "abort":
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "by hand")
        case "wait":
            await asyncio.Event().wait()
        case "long":
            raise InvalidInput("x" * 100_000, field="persona")
        case "full":
            raise ResourceExhausted("all places are taken", retry_after_seconds=1.5)
        case name if name:
            raise getattr(errors, name)("a sentence")


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest_asyncio.fixture
async def channel(tmp_path: Path, handlers: Handlers) -> AsyncIterator[grpc.aio.Channel]:
    store, api_key = key_store(tmp_path)
    server = rpc.Server(store, max_message_bytes=1 << 16)
    server.add(chat_pb2_grpc.add_ChatServiceServicer_to_server, handlers)
    server.add_reflection(["attune.v1.ChatService"])
    port = server.bind("127.0.0.1", 0, None)
    await server.start()
    async with keyed_channel(f"127.0.0.1:{port}", api_key) as channel:
        yield channel
    await server.stop(0)


async def fails(channel: grpc.aio.Channel, what: str, *, streaming: bool = False, seconds: float = 10) -> Any:
    stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
    request = chat_pb2.ChatRequest(persona=what)
    call = stub.StreamChat(request, timeout=seconds) if streaming else stub.Chat(request, timeout=seconds)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await (_last(call) if streaming else call)
    return refused.value


async def _last(call: Any) -> None:
    assert [chunk.text async for chunk in call] == ["never reached"]


def counted(method: str, status: str) -> float:
    labels = {"method": f"attune.v1.ChatService/{method}", "status": status}
    return REGISTRY.get_sample_value("attune_requests_total", labels) or 0


@pytest.mark.parametrize("streaming", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("error", errors.STATUS)
async def test_every_error_becomes_its_status(
    channel: grpc.aio.Channel, error: type[AttuneError], streaming: bool
) -> None:
    before = counted("StreamChat" if streaming else "Chat", errors.STATUS[error].grpc)
    refusal = await fails(channel, error.__name__, streaming=streaming)
    assert refusal.code().name == errors.STATUS[error].grpc
    assert refusal.details() == "a sentence"
    await eventually(lambda: counted("StreamChat" if streaming else "Chat", errors.STATUS[error].grpc) == before + 1)


async def test_an_unforeseen_error_says_nothing_of_the_inside(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        refusal = await fails(channel, "crash")
    assert (refusal.code(), refusal.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    (record,) = [record for record in caplog.records if record.name == "attune.border"]
    assert "_act" in record.__dict__["trace"]
    assert SECRET not in str(record.__dict__)


async def test_a_cancellation_from_within_does_not_leave_the_caller_waiting(channel: grpc.aio.Channel) -> None:
    assert (await fails(channel, "stray cancel")).code() == grpc.StatusCode.UNAVAILABLE


async def test_a_status_set_by_hand_is_kept(channel: grpc.aio.Channel) -> None:
    refusal = await fails(channel, "abort")
    assert (refusal.code(), refusal.details()) == (grpc.StatusCode.OUT_OF_RANGE, "by hand")


async def test_a_passed_deadline_is_counted_as_one(channel: grpc.aio.Channel) -> None:
    before = counted("Chat", "DEADLINE_EXCEEDED")
    assert (await fails(channel, "wait", seconds=0.2)).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: counted("Chat", "DEADLINE_EXCEEDED") == before + 1)


async def test_long_sentences_are_cut_before_grpc_drops_the_whole_status(channel: grpc.aio.Channel) -> None:
    refusal = await fails(channel, "long")
    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(refusal.details()) == 500


async def test_details_can_be_read_by_machine(channel: grpc.aio.Channel) -> None:
    refusal = await fails(channel, "full")
    status = status_pb2.Status.FromString(dict(refusal.trailing_metadata())["grpc-status-details-bin"])
    assert (status.code, status.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "all places are taken")
    retry, info, quota = (
        error_details_pb2.RetryInfo(),
        error_details_pb2.ErrorInfo(),
        error_details_pb2.QuotaFailure(),
    )
    assert all(any(detail.Unpack(wanted) for detail in status.details) for wanted in (retry, info, quota))
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert (info.reason, info.domain) == ("RESOURCE_EXHAUSTED", "attune")


@pytest.mark.parametrize(
    ("refusal", "status", "sentence"),
    [
        (
            ResourceExhausted("all places are taken", retry_after_seconds=1.5),
            "RESOURCE_EXHAUSTED",
            "all places are taken",
        ),
        (RuntimeError(SECRET), "INTERNAL", "internal error"),
    ],
)
async def test_who_has_no_room_is_refused_before_the_request_has_come(
    channel: grpc.aio.Channel, handlers: Handlers, refusal: Exception, status: str, sentence: str
) -> None:
    handlers.refusal = refusal
    before = counted("Chat", status)
    raw: Any = channel.stream_stream("/attune.v1.ChatService/Chat")
    call = raw(timeout=10)  # nothing is sent
    assert ((await call.code()).name, await call.details()) == (status, sentence)
    assert counted("Chat", status) == before + 1
    handlers.refusal = None
    assert (await fails(channel, "NotFound")).code() == grpc.StatusCode.NOT_FOUND


async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    call: Any = channel.unary_unary("/attune.v1.ChatService/Nothing")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(b"", timeout=5)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_reflection_lists_the_services_and_refuses_garbage(channel: grpc.aio.Channel) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    assert "attune.v1.ChatService" in [service.name for service in answers[0].list_services_response.service]
    raw: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    call = raw(iter([b"\xff\xff"]), timeout=5)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_port_is_never_shared(tmp_path: Path) -> None:
    store, _ = key_store(tmp_path)
    one, other = rpc.Server(store, max_message_bytes=1 << 16), rpc.Server(store, max_message_bytes=1 << 16)
    port = one.bind("127.0.0.1", 0, None)
    with pytest.raises(FailedPrecondition, match=f"cannot listen on 127.0.0.1:{port}"):
        other.bind("127.0.0.1", port, None)
    await one.stop(0)
    await other.stop(0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::"])
async def test_a_port_that_another_would_share_is_refused_as_well(tmp_path: Path, host: str) -> None:
    store, _ = key_store(tmp_path)
    server = rpc.Server(store, max_message_bytes=1 << 16)
    with socket.socket() as another:
        another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        another.bind(("127.0.0.1", 0))
        another.listen()
        with pytest.raises(FailedPrecondition, match="is another server there"):
            server.bind(host, another.getsockname()[1], None)
    await server.stop(0)


async def test_an_address_of_ipv6_is_shown_in_brackets(tmp_path: Path) -> None:
    store, _ = key_store(tmp_path)
    one, other = rpc.Server(store, max_message_bytes=1 << 16), rpc.Server(store, max_message_bytes=1 << 16)
    try:
        port = one.bind("::1", 0, None)
    except FailedPrecondition:
        pytest.skip("this machine has no IPv6")
    with pytest.raises(FailedPrecondition, match=rf"cannot listen on \[::1\]:{port}"):
        other.bind("::1", port, None)
    await one.stop(0)
    await other.stop(0)


async def test_calls_of_many_connections_are_all_answered(tmp_path: Path, handlers: Handlers) -> None:
    store, api_key = key_store(tmp_path)
    server = rpc.Server(store, max_message_bytes=1 << 16)
    server.add(chat_pb2_grpc.add_ChatServiceServicer_to_server, handlers)
    address = f"127.0.0.1:{server.bind('127.0.0.1', 0, None)}"
    await server.start()
    key, own = (("authorization", f"Bearer {api_key}"),), [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=own) for _ in range(24)]
    stubs: list[Any] = [chat_pb2_grpc.ChatServiceStub(channel) for channel in channels]
    answers = await asyncio.gather(*(stub.Chat(chat_pb2.ChatRequest(), metadata=key, timeout=30) for stub in stubs * 8))
    assert [answer.conversation_id for answer in answers] == ["c"] * 24 * 8
    for channel in channels:
        await channel.close()
    await server.stop(0)


@pytest.mark.skipif(sys.platform != "linux", reason="another kernel's way of sharing cores")
async def test_grpcs_thread_takes_no_core_from_the_loop(tmp_path: Path) -> None:
    store, _ = key_store(tmp_path)
    server = rpc.Server(store, max_message_bytes=1 << 16)
    server.bind("127.0.0.1", 0, None)
    await server.start()
    try:
        threads = [thread.native_id for thread in threading.enumerate() if "_poll_wrapper" in thread.name]
        assert threads
        assert {os.sched_getscheduler(thread or 0) for thread in threads} == {os.SCHED_BATCH}
    finally:
        await server.stop(0)
