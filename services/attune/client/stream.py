"""One answer, piece by piece, for threads (`Stream`) and for asyncio (`AsyncStream`).

A stream that fails before it gave any text is asked for again, as client/retry.py says; one that gave some never is.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self

import grpc
import grpc.aio

from attune.client.errors import Cancelled, error_of
from attune.client.response import AsyncResponse, Response, ResponseFields
from attune.client.retry import Patience
from attune.errors import Unavailable
from attune.v1 import chat_pb2

_Begin = Callable[[float], Any]
"""Begins a call that has so many seconds, and returns it."""


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

    def __init__(self, address: str, patience: Patience) -> None:
        self._address = address
        self._patience = patience
        self._received = _Received()
        self._gave_text = False

    @property
    def response_id(self) -> str:
        return self._received.start.response_id

    @property
    def policy_id(self) -> str:
        return self._received.start.policy_id

    @property
    def conversation_id(self) -> str:
        return self._received.start.conversation_id

    def _take(self, chunk: chat_pb2.ChatChunk) -> str:
        text = self._received.take(chunk)
        self._gave_text = self._gave_text or bool(text)
        return text

    def _pause_after(self, failure: grpc.RpcError) -> float:
        """How long to wait before asking again; raises the error when that is not to be, as after any text."""
        error = error_of(failure, self._address)
        if self._gave_text:
            raise error from None
        return self._patience.pause_after(error)

    def _check_end(self) -> None:
        if not self._received.ended:
            raise Unavailable(f"the stream from {self._address} broke off; its response was not acknowledged")


class Stream(_StreamState):
    """Text as it is generated: `for text in stream`; then `stream.response`. Leaving the `with` block cancels."""

    def __init__(
        self, begin: _Begin, patience: Patience, address: str, bind: Callable[[ResponseFields], Response]
    ) -> None:
        super().__init__(address, patience)
        self._begin = begin
        self._bind = bind
        self._cancelled = threading.Event()
        self._call = begin(patience.remaining_seconds())

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, none empty; raises Unavailable when the stream ends without its last message."""
        while True:
            try:
                for chunk in self._call:
                    if text := self._take(chunk):
                        yield text
                break
            except grpc.RpcError as failure:
                pause = self._pause_after(failure)
            if self._cancelled.wait(pause):
                raise Cancelled("the call was cancelled")
            self._received = _Received()
            self._call = self._begin(self._patience.remaining_seconds())
            if self._cancelled.is_set():
                self._call.cancel()
        self._check_end()

    @property
    def response(self) -> Response:
        """The whole response; raises Unavailable before the stream has ended."""
        return self._bind(self._received.fields())

    def cancel(self) -> None:
        """Stops the generation on the server; the response counts as aborted."""
        self._cancelled.set()
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class AsyncStream(_StreamState):
    """Text as it is generated: `async for text in stream`; then `stream.response`."""

    def __init__(
        self, begin: _Begin, patience: Patience, address: str, bind: Callable[[ResponseFields], AsyncResponse]
    ) -> None:
        super().__init__(address, patience)
        self._begin = begin
        self._bind = bind
        self._cancelled = asyncio.Event()
        self._call = begin(patience.remaining_seconds())

    async def __aiter__(self) -> AsyncIterator[str]:
        """Pieces of text, none empty; raises Unavailable when the stream ends without its last message."""
        while True:
            try:
                async for chunk in self._call:
                    if text := self._take(chunk):
                        yield text
                break
            except grpc.RpcError as failure:
                pause = self._pause_after(failure)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and not task.cancelling():  # the call was cancelled, and not who reads it
                    raise Cancelled("the call was cancelled") from None
                raise
            await self._wait(pause)
            self._received = _Received()
            self._call = self._begin(self._patience.remaining_seconds())
        self._check_end()

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._cancelled.wait(), seconds)
        except TimeoutError:
            return
        raise Cancelled("the call was cancelled")

    @property
    def response(self) -> AsyncResponse:
        """The whole response; raises Unavailable before the stream has ended."""
        return self._bind(self._received.fields())

    def cancel(self) -> None:
        """Stops the generation on the server; the response counts as aborted."""
        self._cancelled.set()
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
