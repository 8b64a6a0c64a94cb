"""A chat stream as server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from attune.errors import AttuneError
from attune.inference.http.convert import Chunks
from attune.inference.http.disconnect import gone
from attune.inference.http.errors import error_body
from attune.inference.stall import Guard, stall_guard
from attune.v1 import chat_pb2

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Events(Response):
    """Sends chunks as they come, then `[DONE]`. A caller that goes away, or reads nothing, ends the generation.

    What fails after the first chunk is told in an `error` event; then there is no `[DONE]`.
    """

    def __init__(
        self,
        first: chat_pb2.ChatChunk,
        chunks: AsyncGenerator[chat_pb2.ChatChunk, None],
        form: Chunks,
        *,
        include_usage: bool,
        stall_seconds: float,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = _HEADERS
        self._first = first
        self._chunks = chunks
        self._form = form
        self._include_usage = include_usage
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._chunks):
            telling = asyncio.ensure_future(self._tell(send))
            going = asyncio.ensure_future(gone(receive))
            try:
                await asyncio.wait({telling, going}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (telling, going):
                    task.cancel()
                await asyncio.gather(telling, going, return_exceptions=True)
            if telling.done() and not telling.cancelled():
                telling.result()

    async def _tell(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with stall_guard(self._stall_seconds) as guard:
            try:
                await self._event(send, guard, self._form.text(self._first))
                async for chunk in self._chunks:
                    await self._event(send, guard, self._form.text(chunk))
                if self._include_usage:
                    await self._event(send, guard, self._form.usage())
                await self._event(send, guard, "[DONE]")
            except AttuneError as error:
                await self._event(send, guard, json.dumps(error_body(error)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _event(self, send: Send, guard: Guard, text: str) -> None:
        guard.writing = True
        await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})
        guard.writing = False
        guard.written += 1
