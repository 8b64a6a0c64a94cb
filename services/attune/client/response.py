"""What a policy answered, and what can be said of it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from attune.chat.words import IMPLICIT_SIGNALS
from attune.client.request import signal_request
from attune.v1 import chat_pb2, event_pb2, feedback_pb2

FinishReason = Literal["stop", "length", "aborted", "tool_calls"]
Implicit = Literal["regenerated", "copied", "edited", "abandoned"]

FINISH_REASONS: "dict[event_pb2.FinishReason.ValueType, FinishReason]" = {
    event_pb2.FINISH_REASON_STOP: "stop",
    event_pb2.FINISH_REASON_LENGTH: "length",
    event_pb2.FINISH_REASON_ABORTED: "aborted",
    event_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}

_Id = TypeVar("_Id")


@dataclass(frozen=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for; the arguments are JSON text as it wrote them."""

    id: str
    name: str
    arguments_json: str


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
    tool_calls: tuple[ToolCall, ...]
    reasoning: str

    @classmethod
    def of(cls, response: chat_pb2.Response, conversation_id: str) -> "ResponseFields":
        message = response.message
        return cls(
            response_id=response.response_id,
            policy_id=response.policy_id,
            conversation_id=conversation_id,
            text=message.content,
            finish_reason=FINISH_REASONS[response.finish_reason],
            usage=Usage(response.usage.prompt_tokens, response.usage.output_tokens),
            feedback_token=response.feedback_token,
            tool_calls=tuple(ToolCall(call.id, call.name, call.arguments_json) for call in message.tool_calls),
            reasoning=message.reasoning,
        )


@dataclass(frozen=True)
class _Judged(ResponseFields, Generic[_Id]):
    """Each method gives the feedback's id once it is durably logged. Of one kind the last says what counts."""

    _submit: Callable[[feedback_pb2.SubmitFeedbackRequest], _Id] = field(repr=False, compare=False)

    def up(self, comment: str = "", *, tags: Sequence[str] = ()) -> _Id:
        return self._say(thumb=event_pb2.THUMB_UP, comment=comment, tags=tags)

    def down(self, comment: str = "", *, tags: Sequence[str] = ()) -> _Id:
        return self._say(thumb=event_pb2.THUMB_DOWN, comment=comment, tags=tags)

    def rate(self, rating: int, comment: str = "") -> _Id:
        """1 (worst) to 5."""
        return self._say(rating=rating, comment=comment)

    def correct(self, text: str, comment: str = "") -> _Id:
        """What it should have said."""
        return self._say(correction=event_pb2.Correction(text=text), comment=comment)

    def remark(self, comment: str = "", *, tags: Sequence[str] = ()) -> _Id:
        return self._say(remark=event_pb2.Remark(), comment=comment, tags=tags)

    def annotate(self, start: int, end: int, note: str = "", *, tag: str = "") -> _Id:
        """A remark on the characters of `text` from start to before end."""
        return self._say(annotation=event_pb2.Annotation(start=start, end=end, tag=tag, note=note))

    def outcome(self, name: str, value: bool | float) -> _Id:
        """What became known later: `outcome("ticket_solved", True)`."""
        kind = {"flag": value} if isinstance(value, bool) else {"number": value}
        return self._say(outcome=event_pb2.Outcome(name=name, **kind))

    def implicit(self, what: Implicit) -> _Id:
        """What a person did with it."""
        return self._say(implicit=IMPLICIT_SIGNALS[what])

    def retract_thumb(self) -> _Id:
        return self._say(thumb=event_pb2.THUMB_UNSPECIFIED, retracted=True, revision=1)

    def _say(self, **signal: object) -> _Id:
        return self._submit(signal_request(self.feedback_token, **signal))


class Response(_Judged[str]):
    """A response."""


class AsyncResponse(_Judged[Awaitable[str]]):
    """A response; what is said of it is to be awaited."""
