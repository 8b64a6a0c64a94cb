"""Chat: from a request to tokens to an acknowledged response."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from uuid6 import uuid7

from attune import metrics
from attune.chat.messages import check_messages
from attune.chat.sampling import resolve_sampling
from attune.chat.template import ChatTemplate
from attune.errors import AttuneError, InvalidInput, NotFound, Unavailable
from attune.eventlog.log import RESPONSES, EventLog, Reservation
from attune.ids import hash_end_user, new_response_id, sign_feedback_token
from attune.inference.admission import Admission
from attune.inference.capture import (
    Hashes,
    Origin,
    feedback_handle,
    largest_event_bytes,
    may_store,
    response_event,
)
from attune.inference.engine import Engine, Generation
from attune.inference.policies import Lease, Policies
from attune.keys import Keys
from attune.personas import Persona
from attune.v1 import chat_pb2, chat_pb2_grpc, event_pb2

logger = logging.getLogger(__name__)

MAX_ID_CHARACTERS = 128
MAX_END_USER_CHARACTERS = 256
MAX_METADATA_ENTRIES = 16
MAX_METADATA_KEY_CHARACTERS = 64
MAX_METADATA_VALUE_CHARACTERS = 256

# Longer prompts are rendered in a thread: tokenising them would hold up every stream.
_RENDER_INLINE_CHARACTERS = 8192
# How long one message may wait for a caller that does not read.
_STALL_SECONDS = 30.0

_FINISH = {
    "stop": event_pb2.FINISH_REASON_STOP,
    "length": event_pb2.FINISH_REASON_LENGTH,
}
_FINISH_LABELS = {
    event_pb2.FINISH_REASON_STOP: "stop",
    event_pb2.FINISH_REASON_LENGTH: "length",
    event_pb2.FINISH_REASON_ABORTED: "aborted",
}


@dataclass(eq=False)
class _Turn:
    """One call, from admission to its end."""

    request: chat_pb2.ChatRequest
    origin: Origin
    lease: Lease
    # None when the person did not agree to storing.
    reservation: Reservation | None
    generation: Generation
    ended: bool = False
    messages_sent: int = 0


@dataclass(eq=False)
class ChatService(chat_pb2_grpc.ChatServiceServicer):
    """Answers with a persona's policy, and logs every response.

    A final message (or unary answer) is sent only after the response's group commit. A call that ends early (the
    caller went away, its deadline passed, the engine died, the server stops) is aborted in the engine and logged as
    such, with what was sampled.
    """

    engine: Engine
    template: ChatTemplate
    policies: Policies
    log: EventLog
    keys: Keys
    personas: Mapping[str, Persona]
    default_persona: str
    hashes: Hashes
    admission: Admission
    feedback_token_seconds: float
    stall_seconds: float = _STALL_SECONDS
    _turns: set[_Turn] = field(default_factory=set)
    _settling: set[asyncio.Task[None]] = field(default_factory=set)

    async def Chat(self, request: chat_pb2.ChatRequest, context: Any) -> chat_pb2.ChatResponse:
        async with self._turn(request, streaming=False) as turn:
            while turn.generation.finish_reason is None:
                await turn.generation.next_text()
            end = await self._finish(turn)
            generation = turn.generation
            response = chat_pb2.Response(
                response_id=turn.origin.response_id,
                policy_id=turn.origin.policy_id,
                message=event_pb2.Message(role=event_pb2.ROLE_ASSISTANT, content=generation.text),
                finish_reason=end.finish_reason,
                usage=end.usage,
                feedback_token=end.feedback_token,
            )
            return chat_pb2.ChatResponse(conversation_id=turn.origin.conversation_id, responses=[response])

    async def StreamChat(self, request: chat_pb2.ChatRequest, context: Any) -> None:  # type: ignore[override]
        # Writes by itself: a generator would cost one more task switch for every message.
        async with self._turn(request, streaming=True) as turn:
            generation, origin = turn.generation, turn.origin
            with self._stall_guard(turn):
                start: chat_pb2.ResponseStart | None = chat_pb2.ResponseStart(
                    response_id=origin.response_id,
                    policy_id=origin.policy_id,
                    conversation_id=origin.conversation_id,
                )
                tokens_sent = 0
                while generation.finish_reason is None:
                    text = await generation.next_text()
                    # What has no text yet (half a character, the end of the turn) goes with what follows.
                    if text or start is not None:
                        tokens = len(generation.token_ids)
                        await context.write(chat_pb2.ChatChunk(text=text, tokens=tokens - tokens_sent, start=start))
                        start, tokens_sent = None, tokens
                        turn.messages_sent += 1
                end = await self._finish(turn)
                tokens = len(generation.token_ids) - tokens_sent
                await context.write(chat_pb2.ChatChunk(tokens=tokens, end=end))

    async def abort_all(self) -> None:
        """Ends every running call with UNAVAILABLE; returns once their responses are logged."""
        for turn in list(self._turns):
            with contextlib.suppress(Exception):  # a dead engine has told them already
                await turn.generation.interrupt()
        await self.settle()

    async def settle(self) -> None:
        """Waits until what was cut short is logged."""
        while self._settling:
            await asyncio.wait(self._settling)

    @contextlib.asynccontextmanager
    async def _turn(self, request: chat_pb2.ChatRequest, *, streaming: bool) -> AsyncIterator[_Turn]:
        """Admits, begins, and settles: afterwards nothing of the call is held, however it ended."""
        received_seconds, received_unix_ms = time.monotonic(), time.time_ns() // 1_000_000
        self.admission.enter()
        try:
            persona = self._persona(request.persona)
            in_flight = metrics.REQUESTS_IN_FLIGHT.labels(persona.name)
            in_flight.inc()
            try:
                turn = await self._begin(request, persona, received_seconds, received_unix_ms, streaming=streaming)
                self._turns.add(turn)
                try:
                    yield turn
                finally:
                    self._turns.discard(turn)
                    if not turn.ended:
                        await asyncio.shield(self._own(self._cut_short(turn)))
            finally:
                in_flight.dec()
        finally:
            self.admission.leave()

    async def _begin(
        self,
        request: chat_pb2.ChatRequest,
        persona: Persona,
        received_seconds: float,
        received_unix_ms: int,
        *,
        streaming: bool,
    ) -> _Turn:
        _check_request(request)
        prompt_token_ids = await self._render(persona, request)
        sampling = resolve_sampling(
            request.sampling,
            persona.sampling,
            prompt_tokens=len(prompt_token_ids),
            model_tokens=self.engine.model_tokens,
        )
        reservation = None
        if may_store(request.consent):
            nbytes = largest_event_bytes(
                request,
                prompt_tokens=len(prompt_token_ids),
                max_tokens=sampling.max_tokens,
                max_token_bytes=self.template.max_token_bytes,
            )
            reservation = self.log.reserve(nbytes, RESPONSES)
        conversation_id = request.conversation_id or f"c-{uuid7().hex}"
        lease = self.policies.lease(persona.name, conversation_id)
        try:
            generation = await self.engine.generate(
                prompt_token_ids, sampling, tenant=persona.tenant, adapter=lease.adapter, streaming=streaming
            )
        except BaseException:
            lease.release()
            if reservation is not None:
                reservation.release()
            raise
        metrics.PROMPT_TOKENS.labels(persona.name).inc(len(prompt_token_ids))
        origin = Origin(
            response_id=new_response_id(persona.tenant, self.keys.response_id),
            tenant=persona.tenant,
            persona=persona.name,
            persona_version=persona.version,
            policy_id=lease.policy_id,
            conversation_id=conversation_id,
            end_user=hash_end_user(persona.tenant, request.end_user_id, self.keys.end_user),
            prompt_token_ids=prompt_token_ids,
            sampling=sampling,
            received_unix_ms=received_unix_ms,
            received_seconds=received_seconds,
        )
        return _Turn(request, origin, lease, reservation, generation)

    async def _render(self, persona: Persona, request: chat_pb2.ChatRequest) -> list[int]:
        if request.ByteSize() <= _RENDER_INLINE_CHARACTERS:
            return self.template.render(persona.system_prompt, request.messages)
        return await asyncio.to_thread(self.template.render, persona.system_prompt, request.messages)

    async def _finish(self, turn: _Turn) -> chat_pb2.ResponseEnd:
        """Logs, durably, what the engine ended; raises Unavailable when that was aborted or cannot be logged."""
        generation, origin = turn.generation, turn.origin
        finish_reason = _FINISH.get(generation.finish_reason or "")
        if finish_reason is None:
            raise Unavailable("the response was cut short; the server is stopping or its engine failed")
        turn.ended = True
        turn.lease.release()
        await self._record(turn, finish_reason)
        token = ""
        if turn.reservation is not None:
            handle = feedback_handle(
                origin, key_id=self.keys.feedback_token_id, good_for_seconds=self.feedback_token_seconds
            )
            token = sign_feedback_token(handle, self.keys.feedback_token[handle.key_id])
        usage = chat_pb2.Usage(prompt_tokens=len(origin.prompt_token_ids), output_tokens=len(generation.token_ids))
        return chat_pb2.ResponseEnd(finish_reason=finish_reason, usage=usage, feedback_token=token)

    async def _cut_short(self, turn: _Turn) -> None:
        await turn.generation.abort()
        turn.ended = True
        turn.lease.release()
        try:
            await self._record(turn, event_pb2.FINISH_REASON_ABORTED)
        except AttuneError as error:
            logger.error(
                "aborted response not logged",
                extra={"response_id": turn.origin.response_id, "reason": error.message},
            )

    async def _record(self, turn: _Turn, finish_reason: "event_pb2.FinishReason.ValueType") -> None:
        """Returns once the event is durable; where storing was denied nothing is written."""
        generation, origin = turn.generation, turn.origin
        metrics.OUTPUT_TOKENS.labels(origin.persona).inc(len(generation.token_ids))
        metrics.STREAM_MESSAGES.labels(origin.persona).inc(turn.messages_sent)
        if generation.first_token_seconds is not None:
            waited_seconds = generation.first_token_seconds - origin.received_seconds
            metrics.TIME_TO_FIRST_TOKEN.labels(origin.persona).observe(waited_seconds)
        if turn.reservation is None:
            return
        try:
            event = response_event(
                turn.request,
                origin,
                self.hashes,
                output_token_ids=generation.token_ids,
                output_logprobs=generation.logprobs,
                text=generation.text,
                finish_reason=finish_reason,
                first_token_seconds=generation.first_token_seconds,
                end_seconds=time.monotonic(),
            )
            written = self.log.append(
                RESPONSES, origin.conversation_id.encode(), event.SerializeToString(), turn.reservation
            )
        except BaseException:
            turn.reservation.release()
            raise
        try:
            # Not to be cancelled with the call: the record is on its way.
            await asyncio.shield(asyncio.wrap_future(written))
        except AttuneError:
            turn.reservation.release()
            raise
        metrics.RESPONSES.labels(origin.persona, _FINISH_LABELS[finish_reason]).inc()

    def _persona(self, name: str) -> Persona:
        persona = self.personas.get(name or self.default_persona)
        if persona is None:
            raise NotFound("no such persona", field="persona")
        return persona

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work that goes on when its caller is gone."""
        task = asyncio.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task

    @contextlib.contextmanager
    def _stall_guard(self, turn: _Turn) -> Any:
        """Ends a stream whose caller reads nothing, although its connection is alive."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        stalled = False
        timer: asyncio.TimerHandle

        def look(sent: int, tokens: int) -> None:
            nonlocal stalled, timer
            now = turn.messages_sent, len(turn.generation.token_ids)
            if now == (sent, tokens) and turn.generation.behind and task is not None:
                stalled = True
                task.cancel()
            else:
                timer = loop.call_later(self.stall_seconds, look, *now)

        timer = loop.call_later(self.stall_seconds, look, 0, 0)
        try:
            yield
        except asyncio.CancelledError:
            if stalled and task is not None:
                task.uncancel()
                raise Unavailable(f"the caller read nothing for {self.stall_seconds:g} s") from None
            raise
        finally:
            timer.cancel()


def _check_request(request: chat_pb2.ChatRequest) -> None:
    check_messages(request.messages)
    check_length(request.conversation_id, MAX_ID_CHARACTERS, "conversation_id")
    check_length(request.client_request_id, MAX_ID_CHARACTERS, "client_request_id")
    check_length(request.end_user_id, MAX_END_USER_CHARACTERS, "end_user_id")
    if len(request.metadata) > MAX_METADATA_ENTRIES:
        raise InvalidInput(
            f"metadata has {len(request.metadata)} entries; at most {MAX_METADATA_ENTRIES} are taken", field="metadata"
        )
    for key, value in request.metadata.items():
        check_length(key, MAX_METADATA_KEY_CHARACTERS, "metadata", part="a key")
        check_length(value, MAX_METADATA_VALUE_CHARACTERS, "metadata", part="a value")


def check_length(text: str, limit: int, name: str, *, part: str = "") -> None:
    """Raises InvalidInput when a text is longer than its limit."""
    if len(text) > limit:
        what = f"{part} of {name}" if part else name
        raise InvalidInput(f"{what} has {len(text)} characters; at most {limit} are taken", field=name)
