"""A chat server behind attune's real gRPC border that answers by a script: what it is asked to say is its prompt."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from attune import rpc
from attune.errors import NotFound, ResourceExhausted, Unavailable
from attune.personas.api_keys import KeyStore
from attune.tls import ServerTls
from attune.v1 import chat_pb2, chat_pb2_grpc, event_pb2, feedback_pb2, feedback_pb2_grpc


class ScriptedChat(chat_pb2_grpc.ChatServiceServicer, feedback_pb2_grpc.FeedbackServiceServicer):
    """Answers with the last message's words; `!full`, `!hang`, `!broken`, `!fall` and `!crash` say what goes wrong.

    `failures` are raised first, one a call.
    """

    def __init__(self) -> None:
        self.policy_id = "base"
        self.requests: list[chat_pb2.ChatRequest] = []
        self.feedback: list[feedback_pb2.SubmitFeedbackRequest] = []
        self.failures: list[Exception] = []
        self.aborted = asyncio.Event()

    async def Chat(self, request: chat_pb2.ChatRequest, context: Any) -> chat_pb2.ChatResponse:
        await self._check(request)
        response = chat_pb2.Response(
            response_id="r-1",
            policy_id=self.policy_id,
            message=event_pb2.Message(role=event_pb2.ROLE_ASSISTANT, content=_answer(request)),
            finish_reason=event_pb2.FINISH_REASON_STOP,
            usage=_usage(request),
            feedback_token=_token(request),
        )
        return chat_pb2.ChatResponse(conversation_id=request.conversation_id or "c-1", responses=[response])

    async def StreamChat(self, request: chat_pb2.ChatRequest, context: Any) -> AsyncIterator[chat_pb2.ChatChunk]:
        try:
            async for chunk in self._chunks(request):
                yield chunk
        except (asyncio.CancelledError, GeneratorExit):  # while it makes a chunk, while one is written
            self.aborted.set()
            raise

    async def _chunks(self, request: chat_pb2.ChatRequest) -> AsyncIterator[chat_pb2.ChatChunk]:
        start = chat_pb2.ResponseStart(
            response_id="r-1", policy_id=self.policy_id, conversation_id=request.conversation_id or "c-1"
        )
        await self._check(request)
        yield chat_pb2.ChatChunk(start=start)
        for word in _answer(request).split(" "):
            if word == "!hang":
                await asyncio.Event().wait()
            if word == "!fall":
                raise Unavailable("the engine failed", retry_after_seconds=0.01)
            if word == "!broken":
                return
            yield chat_pb2.ChatChunk(text=f"{word} ", tokens=1)
        end = chat_pb2.ResponseEnd(
            finish_reason=event_pb2.FINISH_REASON_LENGTH, usage=_usage(request), feedback_token=_token(request)
        )
        yield chat_pb2.ChatChunk(end=end)

    async def SubmitFeedback(
        self, request: feedback_pb2.SubmitFeedbackRequest, context: Any
    ) -> feedback_pb2.SubmitFeedbackResponse:
        self.feedback.append(request)
        if self.failures:
            raise self.failures.pop(0)
        return feedback_pb2.SubmitFeedbackResponse(feedback_id=f"f-{len(self.feedback)}")

    async def _check(self, request: chat_pb2.ChatRequest) -> None:
        self.requests.append(request)
        if self.failures:
            raise self.failures.pop(0)
        if request.persona == "nobody":
            raise NotFound("no such persona", field="persona")
        if _answer(request) == "!full":
            raise ResourceExhausted("the server is full", retry_after_seconds=1.5)
        if _answer(request) == "!crash":
            raise RuntimeError("a secret")
        if _answer(request) == "!hang":
            await asyncio.Event().wait()


def _answer(request: chat_pb2.ChatRequest) -> str:
    return request.messages[-1].content


def _usage(request: chat_pb2.ChatRequest) -> chat_pb2.Usage:
    return chat_pb2.Usage(prompt_tokens=len(request.messages), output_tokens=len(_answer(request).split(" ")))


def _token(request: chat_pb2.ChatRequest) -> str:
    return "" if request.consent.HasField("store") and not request.consent.store else "token"


async def start(
    servicer: ScriptedChat, store: KeyStore, tls: ServerTls | None = None, port: int = 0
) -> tuple[rpc.Server, str]:
    """The server, and its address."""
    server = rpc.Server(store, max_message_bytes=1 << 20)
    server.add(chat_pb2_grpc.add_ChatServiceServicer_to_server, servicer)
    server.add(feedback_pb2_grpc.add_FeedbackServiceServicer_to_server, servicer)
    port = server.bind("127.0.0.1", port, tls)
    await server.start()
    return server, f"127.0.0.1:{port}"
