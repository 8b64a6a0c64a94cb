"""What a policy answered, and the thumbs on it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from attune.v1 import event_pb2

FinishReason = Literal["stop", "length", "aborted"]

FINISH_REASONS: "dict[event_pb2.FinishReason.ValueType, FinishReason]" = {
    event_pb2.FINISH_REASON_STOP: "stop",
    event_pb2.FINISH_REASON_LENGTH: "length",
    event_pb2.FINISH_REASON_ABORTED: "aborted",
}


@dataclass(frozen=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class ResponseFields:
    """One response, durably logged by the server before it was handed out."""

    response_id: str
    policy_id: str
    conversation_id: str
    text: str
    finish_reason: FinishReason
    usage: Usage
    feedback_token: str


@dataclass(frozen=True)
class Response(ResponseFields):
    """A response; `up` and `down` return the feedback's id once it is durably logged. The last vote counts."""

    _vote: Callable[[str, "event_pb2.Thumb.ValueType", str], str] = field(repr=False, compare=False)

    def up(self, comment: str = "") -> str:
        return self._vote(self.feedback_token, event_pb2.THUMB_UP, comment)

    def down(self, comment: str = "") -> str:
        return self._vote(self.feedback_token, event_pb2.THUMB_DOWN, comment)


@dataclass(frozen=True)
class AsyncResponse(ResponseFields):
    """A response; `up` and `down` return the feedback's id once it is durably logged. The last vote counts."""

    _vote: Callable[[str, "event_pb2.Thumb.ValueType", str], Awaitable[str]] = field(repr=False, compare=False)

    async def up(self, comment: str = "") -> str:
        return await self._vote(self.feedback_token, event_pb2.THUMB_UP, comment)

    async def down(self, comment: str = "") -> str:
        return await self._vote(self.feedback_token, event_pb2.THUMB_DOWN, comment)
