"""Chat over gRPC."""

import contextlib
from dataclasses import dataclass
from typing import Any

from attune.access import CALLER, Caller
from attune.border import Gated
from attune.inference.chat import Chat
from attune.inference.stall import STALL_SECONDS, stall_guard
from attune.v1 import chat_pb2, chat_pb2_grpc


@dataclass(eq=False)
class ChatService(chat_pb2_grpc.ChatServiceServicer, Gated):
    """The RPCs of chat.proto."""

    chat: Chat
    stall_seconds: float = STALL_SECONDS

    def check_room(self, caller: Caller) -> None:
        self.chat.check_room(caller)

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
