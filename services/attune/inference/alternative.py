"""A call's responses on their way: what was asked, what came so far, and the messages that tell of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from attune.access import Caller
from attune.chat.template import ChatTemplate
from attune.eventlog.log import Reservation
from attune.inference.capture import Captured, Origin
from attune.inference.engine import Generation
from attune.inference.parsing import Parser, Piece
from attune.inference.policies import Lease
from attune.personas.persona import Persona
from attune.v1 import chat_pb2, event_pb2


@dataclass(frozen=True)
class Received:
    """When a request came: monotonic seconds, and milliseconds since the Unix epoch."""

    seconds: float
    unix_ms: int


@dataclass(frozen=True)
class Asked:
    """A request as it was understood."""

    request: chat_pb2.ChatRequest
    caller: Caller
    persona: Persona
    consent: event_pb2.Consent
    # The persona's and the request's; none when tool_choice says so.
    tools: Sequence[event_pb2.Tool]


@dataclass(eq=False)
class Alternative:
    """One response on its way."""

    request: chat_pb2.ChatRequest
    origin: Origin
    lease: Lease
    # None when the person did not agree to storing.
    reservation: Reservation | None
    generation: Generation
    # None when all that is sampled is content.
    parser: Parser | None
    template: ChatTemplate
    messages_sent: int = 0
    finish_reason: "event_pb2.FinishReason.ValueType" = event_pb2.FINISH_REASON_UNSPECIFIED
    _content: str = ""
    _reasoning: str = ""
    _calls: list[event_pb2.ToolCall] = field(default_factory=list)
    _taken: int = 0
    _tokens_told: int = 0
    _rest: Piece | None = None

    @property
    def ended(self) -> bool:
        return self.finish_reason != event_pb2.FINISH_REASON_UNSPECIFIED

    def take(self, text: str) -> Piece:
        """What newly sampled text adds to the answer."""
        self._taken += len(text)
        piece = Piece(text) if self.parser is None else self.parser.feed(text, self.generation.token_ids)
        self._add(piece)
        return piece

    def finish(self, reason: "event_pb2.FinishReason.ValueType") -> None:
        """No more will come; once only."""
        if len(self.generation.text) > self._taken:  # it was aborted between two steps
            self.take(self.generation.text[self._taken :])
        if self.parser is not None:
            self._rest = self.parser.finish()
            self._add(self._rest)
        if self._calls and reason == event_pb2.FINISH_REASON_STOP:
            reason = event_pb2.FINISH_REASON_TOOL_CALLS
        self.finish_reason = reason

    def chunk(self, piece: Piece) -> chat_pb2.ChatChunk | None:
        """The message for a piece, the first with the response's ids; none when there is nothing to tell."""
        first = self.messages_sent == 0
        if not (first or piece.content or piece.reasoning or piece.tool_calls):
            return None
        chunk = self._covering(piece)
        if first:
            chunk.start.response_id = self.origin.response_id
            chunk.start.policy_id = self.origin.policy_id
            chunk.start.conversation_id = self.origin.conversation_id
        return chunk

    def last_chunk(self, response: chat_pb2.Response) -> chat_pb2.ChatChunk:
        """The message that acknowledges the response."""
        chunk = self._covering(self._rest or Piece())
        chunk.end.finish_reason = response.finish_reason
        chunk.end.usage.CopyFrom(response.usage)
        chunk.end.feedback_token = response.feedback_token
        return chunk

    def response(self, feedback_token: str) -> chat_pb2.Response:
        """The whole, once finished."""
        return chat_pb2.Response(
            response_id=self.origin.response_id,
            policy_id=self.origin.policy_id,
            message=event_pb2.Message(
                role=event_pb2.ROLE_ASSISTANT,
                content=self._content,
                tool_calls=self._calls,
                reasoning=self._reasoning,
            ),
            finish_reason=self.finish_reason,
            usage=chat_pb2.Usage(
                prompt_tokens=len(self.origin.prompt_token_ids), output_tokens=len(self.generation.token_ids)
            ),
            feedback_token=feedback_token,
            logprobs=self._logprobs(0),
        )

    def captured(self) -> Captured:
        return Captured(
            output_token_ids=self.generation.token_ids,
            output_logprobs=self.generation.logprobs,
            text=self._content,
            tool_calls=self._calls,
            reasoning=self._reasoning,
            finish_reason=self.finish_reason,
            first_token_seconds=self.generation.first_token_seconds,
        )

    def _add(self, piece: Piece) -> None:
        self._content += piece.content
        self._reasoning += piece.reasoning
        for delta in piece.tool_calls:
            if delta.index == len(self._calls):
                self._calls.append(event_pb2.ToolCall(id=delta.id, name=delta.name))
            self._calls[delta.index].arguments_json += delta.arguments_json

    def _covering(self, piece: Piece) -> chat_pb2.ChatChunk:
        told, self._tokens_told = self._tokens_told, len(self.generation.token_ids)
        chunk = chat_pb2.ChatChunk(
            alternative=self.origin.alternative, text=piece.content, tokens=self._tokens_told - told
        )
        if piece.reasoning:
            chunk.reasoning = piece.reasoning
        if piece.tool_calls:
            chunk.tool_calls.extend(piece.tool_calls)
        if self.request.HasField("top_logprobs"):
            chunk.logprobs.extend(self._logprobs(told))
        return chunk

    def _logprobs(self, start: int) -> list[chat_pb2.TokenLogprob]:
        if not self.request.HasField("top_logprobs"):
            return []
        generation = self.generation
        told = []
        for position in range(start, len(generation.token_ids)):
            top = generation.top_logprobs[position] if generation.top_logprobs else ()
            told.append(
                self._logprob(
                    generation.token_ids[position],
                    generation.logprobs[position],
                    [self._logprob(token, logprob) for token, logprob in top],
                )
            )
        return told

    def _logprob(
        self, token_id: int, logprob: float, top: Sequence[chat_pb2.TokenLogprob] = ()
    ) -> chat_pb2.TokenLogprob:
        token = self.template.token_bytes(token_id)
        return chat_pb2.TokenLogprob(text=token.decode(errors="replace"), token=token, logprob=logprob, top=top)


@dataclass(eq=False)
class Turn:
    """One call: its alternatives, and those of their responses that are whole and logged."""

    asked: Asked
    received: Received
    prompt_token_ids: list[int]
    sampling: event_pb2.Sampling
    alternatives: list[Alternative] = field(default_factory=list)
    responses: dict[int, chat_pb2.Response] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Prompt tokens read, and tokens sampled so far."""
        return len(self.prompt_token_ids) + sum(len(one.generation.token_ids) for one in self.alternatives)

    def answer(self) -> chat_pb2.ChatResponse:
        """Every response in its order; all must have come."""
        return chat_pb2.ChatResponse(
            conversation_id=self.alternatives[0].origin.conversation_id,
            responses=[self.responses[index] for index in range(len(self.alternatives))],
        )


def replayed_chunks(answer: chat_pb2.ChatResponse) -> list[chat_pb2.ChatChunk]:
    """An answer that was given before, as a stream: each response in one message, then its end."""
    chunks = []
    for index, response in enumerate(answer.responses):
        message = response.message
        chunks.append(
            chat_pb2.ChatChunk(
                alternative=index,
                text=message.content,
                reasoning=message.reasoning,
                tokens=response.usage.output_tokens,
                tool_calls=[
                    chat_pb2.ToolCallDelta(index=number, id=call.id, name=call.name, arguments_json=call.arguments_json)
                    for number, call in enumerate(message.tool_calls)
                ],
                logprobs=response.logprobs,
                start=chat_pb2.ResponseStart(
                    response_id=response.response_id,
                    policy_id=response.policy_id,
                    conversation_id=answer.conversation_id,
                    replayed=True,
                ),
            )
        )
        chunks.append(
            chat_pb2.ChatChunk(
                alternative=index,
                end=chat_pb2.ResponseEnd(
                    finish_reason=response.finish_reason,
                    usage=response.usage,
                    feedback_token=response.feedback_token,
                ),
            )
        )
    return chunks
