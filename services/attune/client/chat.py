"""Chat and feedback over gRPC, from threads (`Client`) and from asyncio (`AsyncClient`).

Every call has a deadline for all of it, and every failure is an AttuneError. Chat and feedback are given ids of their
own where the caller gives none, so that they can be repeated and do the same once; what is repeated, and when, says
client/retry.py. Batches are not: sent again by the caller, what was taken before is a duplicate.
"""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from attune.client.authorized import Authorized
from attune.client.calls import call, call_async
from attune.client.channel import Security, open_async_channel, open_channel
from attune.client.errors import error_of
from attune.client.receipts import AsyncReceipts, Receipt, Receipts, Subject, aggregator_of
from attune.client.request import (
    Messages,
    RequestFields,
    SamplingFields,
    chat_request,
    identified,
    ranking_request,
)
from attune.client.response import AsyncResponse, Response, ResponseFields
from attune.client.retry import PATIENT, Patience, Retry
from attune.client.stream import AsyncStream, Stream
from attune.errors import InvalidInput, Unavailable
from attune.v1 import chat_pb2, chat_pb2_grpc, feedback_pb2, feedback_pb2_grpc

__all__ = ["AsyncClient", "AsyncStream", "Client", "SamplingFields", "Stream"]


class Client:
    """Talks to one server with one API key; safe to share between threads.

    In plain text on this machine, with TLS to any other; `tls` says otherwise (a `Tls`, True, or False
    for plain text). Receipts come from the aggregator, by default on port 50052 of the same host.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        api_key: str = "",
        tls: Security = None,
        timeout_seconds: float = 60,
        retry: Retry = PATIENT,
        aggregator: str = "",
    ) -> None:
        self.address = address
        self.timeout_seconds = timeout_seconds
        self.retry = retry
        self._channel = open_channel(address, tls)
        self._desk = Receipts(aggregator or aggregator_of(address), api_key=api_key, tls=tls, retry=retry)
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
        reply = self._call(self._chat.Chat, identified(request), timeout_seconds)
        return [self._bind(fields) for fields in _responses(reply)]

    def stream(
        self, messages: Messages, *, timeout_seconds: float | None = None, **fields: Unpack[RequestFields]
    ) -> Stream:
        """One answer, piece by piece. The deadline is for the whole of it."""
        request = identified(_request(messages, fields))

        def begin(seconds: float) -> Any:
            return self._chat.StreamChat(request, timeout=seconds)

        return Stream(begin, self._patience(timeout_seconds), self.address, self._bind)

    def submit(self, request: feedback_pb2.SubmitFeedbackRequest, *, timeout_seconds: float | None = None) -> str:
        """Sends feedback of any kind; returns its id once it is durably logged."""
        reply = self._call(self._feedback.SubmitFeedback, identified(request), timeout_seconds)
        return str(reply.feedback_id)

    def receipts(self, *, timeout_seconds: float | None = None, **subject: Unpack[Subject]) -> list[Receipt]:
        """What became of feedback, the newest first: `receipts(feedback_id=...)`. Raises NotFound."""
        return self._desk.ask(timeout_seconds=timeout_seconds or self.timeout_seconds, **subject)

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
        self._desk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: Any, request: Any, timeout_seconds: float | None) -> Any:
        """One call that does the same when it is repeated."""
        return call(method, request, self._patience(timeout_seconds), self.address)

    def _patience(self, timeout_seconds: float | None) -> Patience:
        return Patience(self.retry, timeout_seconds or self.timeout_seconds)

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
        retry: Retry = PATIENT,
        aggregator: str = "",
    ) -> None:
        self.address = address
        self.timeout_seconds = timeout_seconds
        self.retry = retry
        self._channel = open_async_channel(address, tls)
        self._desk = AsyncReceipts(aggregator or aggregator_of(address), api_key=api_key, tls=tls, retry=retry)
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
        reply = await self._call(self._chat.Chat, identified(request), timeout_seconds)
        return [self._bind(fields) for fields in _responses(reply)]

    def stream(
        self, messages: Messages, *, timeout_seconds: float | None = None, **fields: Unpack[RequestFields]
    ) -> AsyncStream:
        """One answer, piece by piece. The deadline is for the whole of it."""
        request = identified(_request(messages, fields))

        def begin(seconds: float) -> Any:
            return self._chat.StreamChat(request, timeout=seconds)

        return AsyncStream(begin, self._patience(timeout_seconds), self.address, self._bind)

    async def submit(self, request: feedback_pb2.SubmitFeedbackRequest, *, timeout_seconds: float | None = None) -> str:
        """Sends feedback of any kind; returns its id once it is durably logged."""
        reply = await self._call(self._feedback.SubmitFeedback, identified(request), timeout_seconds)
        return str(reply.feedback_id)

    async def receipts(self, *, timeout_seconds: float | None = None, **subject: Unpack[Subject]) -> list[Receipt]:
        """What became of feedback, the newest first: `await receipts(feedback_id=...)`. Raises NotFound."""
        return await self._desk.ask(timeout_seconds=timeout_seconds or self.timeout_seconds, **subject)

    async def close(self) -> None:
        await self._channel.close()
        await self._desk.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: Any, request: Any, timeout_seconds: float | None) -> Any:
        """One call that does the same when it is repeated."""
        return await call_async(method, request, self._patience(timeout_seconds), self.address)

    def _patience(self, timeout_seconds: float | None) -> Patience:
        return Patience(self.retry, timeout_seconds or self.timeout_seconds)

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
