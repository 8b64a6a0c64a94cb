"""Chat and feedback over gRPC, from threads (`Client`) and from asyncio (`AsyncClient`).

Thin: no retries, no pool of channels. Every call has a deadline, and every failure is an AttuneError.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Self, Unpack

import grpc
import grpc.aio

from attune.client.authorized import Authorized
from attune.client.errors import Cancelled, error_of
from attune.client.request import Messages, RequestFields, SamplingFields, chat_request, thumb_request
from attune.client.response import FINISH_REASONS, AsyncResponse, Response, ResponseFields, Usage
from attune.errors import Unavailable
from attune.v1 import chat_pb2, chat_pb2_grpc, event_pb2, feedback_pb2, feedback_pb2_grpc

__all__ = ["AsyncClient", "AsyncStream", "Client", "SamplingFields", "Stream"]

_OPTIONS = (
    ("grpc.max_receive_message_length", 1 << 26),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class _Received:
    """What has come of a stream so far."""

    def __init__(self) -> None:
        self.start = chat_pb2.ResponseStart()
        self.end: chat_pb2.ResponseEnd | None = None
        self.text = ""

    def take(self, chunk: chat_pb2.ChatChunk) -> str:
        if chunk.HasField("start"):
            self.start = chunk.start
        if chunk.HasField("end"):
            self.end = chunk.end
        self.text += chunk.text
        return chunk.text

    def fields(self) -> ResponseFields:
        if self.end is None:
            raise Unavailable("the stream has not ended, so its response is not logged yet")
        return ResponseFields(
            response_id=self.start.response_id,
            policy_id=self.start.policy_id,
            conversation_id=self.start.conversation_id,
            text=self.text,
            finish_reason=FINISH_REASONS[self.end.finish_reason],
            usage=_usage(self.end.usage),
            feedback_token=self.end.feedback_token,
        )


class _StreamState:
    """What both kinds of stream know; ids are empty until the first piece of text was taken."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._received = _Received()

    @property
    def response_id(self) -> str:
        return self._received.start.response_id

    @property
    def policy_id(self) -> str:
        return self._received.start.policy_id

    @property
    def conversation_id(self) -> str:
        return self._received.start.conversation_id

    def _check_end(self) -> None:
        if self._received.end is None:
            raise Unavailable(f"the stream from {self._address} broke off; its response was not acknowledged")


class Stream(_StreamState):
    """Text as it is generated: `for text in stream`; then `stream.response`. Leaving the `with` block cancels."""

    def __init__(self, client: "Client", call: "grpc._CallIterator[chat_pb2.ChatChunk]") -> None:
        super().__init__(client.address)
        self._client = client
        self._call = call

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, none empty; raises Unavailable when the stream ends without its last message."""
        try:
            for chunk in self._call:
                text = self._received.take(chunk)
                if text:
                    yield text
        except grpc.RpcError as failure:
            raise error_of(failure, self._address) from None
        self._check_end()

    @property
    def response(self) -> Response:
        """The whole response; raises Unavailable before the stream has ended."""
        return self._client._bind(self._received.fields())

    def cancel(self) -> None:
        """Stops the generation on the server; the response counts as aborted."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class AsyncStream(_StreamState):
    """Text as it is generated: `async for text in stream`; then `stream.response`."""

    def __init__(
        self, client: "AsyncClient", call: grpc.aio.UnaryStreamCall[chat_pb2.ChatRequest, chat_pb2.ChatChunk]
    ) -> None:
        super().__init__(client.address)
        self._client = client
        self._call = call

    async def __aiter__(self) -> AsyncIterator[str]:
        """Pieces of text, none empty; raises Unavailable when the stream ends without its last message."""
        try:
            async for chunk in self._call:
                text = self._received.take(chunk)
                if text:
                    yield text
        except grpc.RpcError as failure:
            raise error_of(failure, self._address) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():  # the call was cancelled, and not who reads it
                raise Cancelled("the call was cancelled") from None
            raise
        self._check_end()

    @property
    def response(self) -> AsyncResponse:
        """The whole response; raises Unavailable before the stream has ended."""
        return self._client._bind(self._received.fields())

    def cancel(self) -> None:
        """Stops the generation on the server; the response counts as aborted."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


class Client:
    """Talks to one server with one API key; safe to share between threads."""

    def __init__(self, address: str = "127.0.0.1:50051", *, api_key: str = "", timeout_seconds: float = 60) -> None:
        self.address = address
        self.timeout_seconds = timeout_seconds
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._chat = Authorized(chat_pb2_grpc.ChatServiceStub(self._channel), api_key)
        self._feedback = Authorized(feedback_pb2_grpc.FeedbackServiceStub(self._channel), api_key)

    def chat(
        self, messages: Messages, *, timeout_seconds: float | None = None, **fields: Unpack[RequestFields]
    ) -> Response:
        """One answer, whole: `client.chat("Hello", persona="tutor", temperature=0.2)`."""
        request = chat_request(messages, fields)
        try:
            reply = self._chat.Chat(request, timeout=timeout_seconds or self.timeout_seconds)
        except grpc.RpcError as failure:
            raise error_of(failure, self.address) from None
        return self._bind(_fields(reply))

    def stream(
        self, messages: Messages, *, timeout_seconds: float | None = None, **fields: Unpack[RequestFields]
    ) -> Stream:
        """One answer, piece by piece. The deadline is for the whole of it."""
        request = chat_request(messages, fields)
        return Stream(self, self._chat.StreamChat(request, timeout=timeout_seconds or self.timeout_seconds))

    def submit(self, request: feedback_pb2.SubmitFeedbackRequest, *, timeout_seconds: float | None = None) -> str:
        """Sends feedback of any kind; returns its id once it is durably logged."""
        try:
            reply = self._feedback.SubmitFeedback(request, timeout=timeout_seconds or self.timeout_seconds)
        except grpc.RpcError as failure:
            raise error_of(failure, self.address) from None
        return str(reply.feedback_id)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _bind(self, fields: ResponseFields) -> Response:
        return Response(**vars(fields), _vote=self._vote)

    def _vote(self, feedback_token: str, thumb: "event_pb2.Thumb.ValueType", comment: str) -> str:
        return self.submit(thumb_request(feedback_token, thumb, comment))


class AsyncClient:
    """Talks to one server with one API key; to be made and used inside one running event loop."""

    def __init__(self, address: str = "127.0.0.1:50051", *, api_key: str = "", timeout_seconds: float = 60) -> None:
        self.address = address
        self.timeout_seconds = timeout_seconds
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._chat = Authorized(chat_pb2_grpc.ChatServiceStub(self._channel), api_key)
        self._feedback = Authorized(feedback_pb2_grpc.FeedbackServiceStub(self._channel), api_key)

    async def chat(
        self, messages: Messages, *, timeout_seconds: float | None = None, **fields: Unpack[RequestFields]
    ) -> AsyncResponse:
        """One answer, whole: `await client.chat("Hello", persona="tutor", temperature=0.2)`."""
        request = chat_request(messages, fields)
        try:
            reply = await self._chat.Chat(request, timeout=timeout_seconds or self.timeout_seconds)
        except grpc.RpcError as failure:
            raise error_of(failure, self.address) from None
        return self._bind(_fields(reply))

    def stream(
        self, messages: Messages, *, timeout_seconds: float | None = None, **fields: Unpack[RequestFields]
    ) -> AsyncStream:
        """One answer, piece by piece. The deadline is for the whole of it."""
        request = chat_request(messages, fields)
        return AsyncStream(self, self._chat.StreamChat(request, timeout=timeout_seconds or self.timeout_seconds))

    async def submit(self, request: feedback_pb2.SubmitFeedbackRequest, *, timeout_seconds: float | None = None) -> str:
        """Sends feedback of any kind; returns its id once it is durably logged."""
        try:
            reply = await self._feedback.SubmitFeedback(request, timeout=timeout_seconds or self.timeout_seconds)
        except grpc.RpcError as failure:
            raise error_of(failure, self.address) from None
        return str(reply.feedback_id)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _bind(self, fields: ResponseFields) -> AsyncResponse:
        return AsyncResponse(**vars(fields), _vote=self._vote)

    async def _vote(self, feedback_token: str, thumb: "event_pb2.Thumb.ValueType", comment: str) -> str:
        return await self.submit(thumb_request(feedback_token, thumb, comment))


def _fields(reply: chat_pb2.ChatResponse) -> ResponseFields:
    if not reply.responses:
        raise Unavailable("the server answered without a response")
    response = reply.responses[0]
    return ResponseFields(
        response_id=response.response_id,
        policy_id=response.policy_id,
        conversation_id=reply.conversation_id,
        text=response.message.content,
        finish_reason=FINISH_REASONS[response.finish_reason],
        usage=_usage(response.usage),
        feedback_token=response.feedback_token,
    )


def _usage(usage: chat_pb2.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.output_tokens)
