"""Chat over gRPC."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from attune.access import CALLER
from attune.errors import Unavailable
from attune.inference.chat import Chat
from attune.v1 import chat_pb2, chat_pb2_grpc

# How long one message may wait for a caller that does not read.
STALL_SECONDS = 30.0


@dataclass(eq=False)
class ChatService(chat_pb2_grpc.ChatServiceServicer):
    """The RPCs of chat.proto."""

    chat: Chat
    stall_seconds: float = STALL_SECONDS

    async def Chat(self, request: chat_pb2.ChatRequest, context: Any) -> chat_pb2.ChatResponse:
        return await self.chat.answer(request, CALLER.get())

    async def StreamChat(self, request: chat_pb2.ChatRequest, context: Any) -> None:  # type: ignore[override]
        # Writes by itself: a generator would cost one more task switch for every message.
        async with contextlib.aclosing(self.chat.stream(request, CALLER.get())) as chunks:
            with stall_guard(self.stall_seconds) as guard:
                async for chunk in chunks:
                    guard.writing = True
                    await context.write(chunk)
                    guard.writing = False
                    guard.written += 1


@dataclass(eq=False)
class Guard:
    """Told by whoever writes: whether a message is on its way now, and how many were taken."""

    writing: bool = False
    written: int = 0


@contextlib.contextmanager
def stall_guard(stall_seconds: float) -> Iterator[Guard]:
    """Ends the running task with Unavailable when one message waits longer: the caller is there and reads nothing."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    guard = Guard()
    stalled = False
    timer: asyncio.TimerHandle

    def look(written: int, writing: bool) -> None:
        nonlocal stalled, timer
        if writing and guard.writing and guard.written == written and task is not None:
            stalled = True
            task.cancel()
        else:
            timer = loop.call_later(stall_seconds, look, guard.written, guard.writing)

    timer = loop.call_later(stall_seconds, look, 0, False)
    try:
        yield guard
    except asyncio.CancelledError:
        if stalled and task is not None:
            task.uncancel()
            raise Unavailable(f"the caller read nothing for {stall_seconds:g} s") from None
        raise
    finally:
        timer.cancel()
