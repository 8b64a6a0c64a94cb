"""Chat and feedback over gRPC, from threads (`Client`) and from asyncio (`AsyncClient`).

Thin: no retries, no pool of channels. Every call has a deadline, and every failure is an AttuneError.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self, Unpack

import grpc
import grpc.aio

from attune.client.authorized import Authorized
from attune.client.channel import Security, open_async_channel, open_channel
from attune.client.errors import Cancelled, error_of
from attune.client.request import Messages, RequestFields, SamplingFields, chat_request, ranking_request
from attune.client.response import AsyncResponse, Response, ResponseFields
from attune.errors import InvalidInput, Unavailable
from attune.v1 import chat_pb2, chat_pb2_grpc, feedback_pb2, feedback_pb2_grpc

__all__ = ["AsyncClient", "AsyncStream", "Client", "SamplingFields", "Stream"]


class _Received:
    """What has come of a stream so far."""

    def __init__(self) -> None:
        self.start = chat_pb2.ResponseStart()
        self.ended = False
        self._response = chat_pb2.Response()

    def take(self, chunk: chat_pb2.ChatChunk) -> str:
        message = self._response.message
        if chunk.HasField("start"):
            self.start = chunk.start
        if chunk.HasField("end"):
            self.ended = True
            self._response.finish_reason = chunk.end.finish_reason
            self._response.usage.CopyFrom(chunk.end.usage)
            self._response.feedback_token = chunk.end.feedback_token
        message.content += chunk.text
        message.reasoning += chunk.reasoning
        for delta in chunk.tool_calls:
            if delta.index == len(message.tool_calls):
                message.tool_calls.add(id=delta.id, name=delta.name)
            message.tool_calls[delta.index].arguments_json += delta.arguments_json
        return chunk.text

    def fields(self) -> ResponseFields:
        if not self.ended:
            raise Unavailable("the stream has not ended, so its response is not logged yet")
        self._response.response_id = self.start.response_id
        self._response.policy_id = self.start.policy_id
        return ResponseFields.of(self._response, self.start.conversation_id)


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
        if not self._received.ended:
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
    """Talks to one server with one API key; safe to share between threads.

    In plain text on this machine, with TLS to any other; `tls` says otherwise (a `Tls`, True, or False
    for plain text).
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        api_key: str = "",
        tls: Security = None,
        timeout_seconds: float = 60,
    ) -> None:
        self.address = address
        self.timeout_seconds = timeout_seconds
        self._channel = open_channel(address, tls)
        self._chat = Authorized(chat_pb2_grpc.ChatServiceStub(self._channel), api_key)
        self._feedback = Authorized(feedback_pb2_grpc.FeedbackServiceStub(self._channel), api_key)
        self._imports = Authorized(feedback_pb2_grpc.ImportServiceStub(self._channel), api_key)

    def chat(
        self, messages: Messages, *, timeout_seconds: float | None = None, **fields: Unpack[RequestFields]
    ) -> Response:
        """One answer, whole: `client.chat("Hello", persona="tutor", temperature=0.2)`."""
        return self._ask(_request(messages, fields), timeout_seconds)[0]

    def alternatives(
        self, messages: Messages, *, timeout_seconds: float | None = None, **fields: Unpack[RequestFields]
    ) -> list[Response]:
        """Several answers to the same: `client.alternatives("Hello", alternatives=3)`; `rank` says which is best."""
        return self._ask(chat_request(messages, fields), timeout_seconds)

    def rank(self, *ranked: Response | Sequence[Response]) -> str:
        """Orders responses to one prompt, best first; those in a list are tied. Returns the feedback's id."""
        return self.submit(ranking_request(_tokens(ranked)))

    def _ask(self, request: chat_pb2.ChatRequest, timeout_seconds: float | None) -> list[Response]:
        try:
            reply = self._chat.Chat(request, timeout=timeout_seconds or self.timeout_seconds)
        except grpc.RpcError as failure:
            raise error_of(failure, self.address) from None
        return [self._bind(fields) for fields in _responses(reply)]

    def stream(
        self, messages: Messages, *, timeout_seconds: float | None = None, **fields: Unpack[RequestFields]
    ) -> Stream:
        """One answer, piece by piece. The deadline is for the whole of it."""
        request = _request(messages, fields)
        return Stream(self, self._chat.StreamChat(request, timeout=timeout_seconds or self.timeout_seconds))

    def submit(self, request: feedback_pb2.SubmitFeedbackRequest, *, timeout_seconds: float | None = None) -> str:
        """Sends feedback of any kind; returns its id once it is durably logged."""
        try:
            reply = self._feedback.SubmitFeedback(request, timeout=timeout_seconds or self.timeout_seconds)
        except grpc.RpcError as failure:
            raise error_of(failure, self.address) from None
        return str(reply.feedback_id)

    def submit_all(
        self, requests: Iterable[feedback_pb2.SubmitFeedbackRequest], *, timeout_seconds: float = 3600
    ) -> Iterator[feedback_pb2.SubmitFeedbackResult]:
        """Sends much feedback in one stream; one result for each, in order, what was refused among them."""
        try:
            yield from self._feedback.SubmitFeedbackBatch(iter(requests), timeout=timeout_seconds)
        except grpc.RpcError as failure:
            raise error_of(failure, self.address) from None

    def import_all(
        self, requests: Iterable[feedback_pb2.ImportResponseRequest], *, timeout_seconds: float = 3600
    ) -> Iterator[feedback_pb2.ImportResponseResult]:
        """Sends answers from elsewhere in one stream; one result for each, in order, what was refused among them."""
        try:
            yield from self._imports.ImportResponses(iter(requests), timeout=timeout_seconds)
        except grpc.RpcError as failure:
            raise error_of(failure, self.address) from None

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _bind(self, fields: ResponseFields) -> Response:
        return Response(**vars(fields), _submit=self.submit)


class AsyncClient:
    """Talks to one server with one API key, as `Client` does; to be made and used inside one running event loop."""

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        api_key: str = "",
        tls: Security = None,
        timeout_seconds: float = 60,
    ) -> None:
        self.address = address
        self.timeout_seconds = timeout_seconds
        self._channel = open_async_channel(address, tls)
        self._chat = Authorized(chat_pb2_grpc.ChatServiceStub(self._channel), api_key)
        self._feedback = Authorized(feedback_pb2_grpc.FeedbackServiceStub(self._channel), api_key)

    async def chat(
        self, messages: Messages, *, timeout_seconds: float | None = None, **fields: Unpack[RequestFields]
    ) -> AsyncResponse:
        """One answer, whole: `await client.chat("Hello", persona="tutor", temperature=0.2)`."""
        return (await self._ask(_request(messages, fields), timeout_seconds))[0]

    async def alternatives(
        self, messages: Messages, *, timeout_seconds: float | None = None, **fields: Unpack[RequestFields]
    ) -> list[AsyncResponse]:
        """Several answers to the same: `await client.alternatives("Hello", alternatives=3)`."""
        return await self._ask(chat_request(messages, fields), timeout_seconds)

    async def rank(self, *ranked: AsyncResponse | Sequence[AsyncResponse]) -> str:
        """Orders responses to one prompt, best first; those in a list are tied. Returns the feedback's id."""
        return await self.submit(ranking_request(_tokens(ranked)))

    async def _ask(self, request: chat_pb2.ChatRequest, timeout_seconds: float | None) -> list[AsyncResponse]:
        try:
            reply = await self._chat.Chat(request, timeout=timeout_seconds or self.timeout_seconds)
        except grpc.RpcError as failure:
            raise error_of(failure, self.address) from None
        return [self._bind(fields) for fields in _responses(reply)]

    def stream(
        self, messages: Messages, *, timeout_seconds: float | None = None, **fields: Unpack[RequestFields]
    ) -> AsyncStream:
        """One answer, piece by piece. The deadline is for the whole of it."""
        request = _request(messages, fields)
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
        return AsyncResponse(**vars(fields), _submit=self.submit)


def _request(messages: Messages, fields: RequestFields) -> chat_pb2.ChatRequest:
    """For one response: streams and `chat` give one, `alternatives` gives several."""
    if fields.get("alternatives", 1) != 1:
        raise InvalidInput("several responses come from `alternatives`", field="alternatives")
    return chat_request(messages, fields)


def _responses(reply: chat_pb2.ChatResponse) -> list[ResponseFields]:
    if not reply.responses:
        raise Unavailable("the server answered without a response")
    return [ResponseFields.of(response, reply.conversation_id) for response in reply.responses]


def _tokens(ranked: Sequence[ResponseFields | Sequence[ResponseFields]]) -> list[list[str]]:
    return [
        [one.feedback_token for one in ([group] if isinstance(group, ResponseFields) else group)] for group in ranked
    ]
