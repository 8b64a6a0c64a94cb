"""Chat: from a request to tokens to acknowledged responses. The core behind gRPC and HTTP."""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from attune import metrics
from attune.access import Caller, Role
from attune.chat.limits import MAX_END_USER_CHARACTERS, MAX_ID_CHARACTERS, check_length, check_metadata
from attune.chat.messages import check_messages
from attune.chat.sampling import MAX_SEED, resolve_sampling
from attune.chat.template import ChatTemplate
from attune.chat.tools import offered_tools
from attune.chat.words import FINISH_REASONS
from attune.clock import now_unix_ms
from attune.errors import AttuneError, InvalidInput, Unavailable
from attune.eventlog.log import RESPONSES, EventLog, Reservation
from attune.ids import hash_end_user, new_conversation_id, persona_label, policy_number
from attune.inference.admission import Admission
from attune.inference.alternative import Alternative, Asked, Received, Turn, replayed_chunks
from attune.inference.capture import (
    Hashes,
    Origin,
    feedback_handle,
    largest_event_bytes,
    resolve_consent,
    response_event,
)
from attune.inference.engine import Engine, Grammar
from attune.inference.idempotency import Idempotency
from attune.inference.interleave import interleaved
from attune.inference.parsing import Parsing
from attune.inference.policies import Policies
from attune.inference.quota import Quotas
from attune.inference.structured import Grammars
from attune.keys import Keys
from attune.personas.store import Personas
from attune.settings import TenantSettings
from attune.v1 import chat_pb2, event_pb2

logger = logging.getLogger(__name__)

MAX_ALTERNATIVES = 8
MAX_TOP_LOGPROBS = 5

# Longer prompts are rendered in a thread: tokenising them would hold up every stream.
_RENDER_INLINE_CHARACTERS = 8192

_KIND = "chat"

_FINISH = {"stop": event_pb2.FINISH_REASON_STOP, "length": event_pb2.FINISH_REASON_LENGTH}


@dataclass(eq=False)
class Chat:
    """Answers with a persona's policy, and logs every response.

    A final chunk (or a whole answer) is handed out only after the response's group commit. A call that ends early
    (the caller went away, its deadline passed, the engine died, the server stops) is aborted in the engine and logged
    as such, with what was sampled. Every error is an AttuneError.
    """

    engine: Engine
    template: ChatTemplate
    policies: Policies
    log: EventLog
    keys: Keys
    personas: Personas
    hashes: Hashes
    admission: Admission
    quotas: Quotas
    idempotency: Idempotency
    parsing: Parsing
    grammars: Grammars
    feedback_token_seconds: float
    tenants: Mapping[str, TenantSettings] = field(default_factory=dict)
    _running: set[Alternative] = field(default_factory=set)
    _settling: set[asyncio.Task[None]] = field(default_factory=set)

    def check_room(self, caller: Caller) -> None:
        """Raises what any call of this caller would be refused with now: to be asked before a request is read."""
        # Who is over a limit of the key's own lays no claim to a part of the server.
        self.quotas.check(caller)
        self.admission.check(caller.tenant)

    async def answer(self, request: chat_pb2.ChatRequest, caller: Caller) -> chat_pb2.ChatResponse:
        """Every alternative, whole."""
        asked, received = self._understand(request, caller)
        async with self._once(asked) as earlier:
            if earlier is not None:
                return earlier
            async with self._turn(asked, received, streaming=False) as turn:
                for one in turn.alternatives:
                    while one.generation.finish_reason is None:
                        one.take(await one.generation.next_text())
                    await self._end(turn, one)
                return turn.answer()

    async def stream(self, request: chat_pb2.ChatRequest, caller: Caller) -> AsyncGenerator[chat_pb2.ChatChunk, None]:
        """Chunks as tokens come, of several alternatives interleaved. To be closed (aclosing): that ends the work."""
        asked, received = self._understand(request, caller)
        async with self._once(asked) as earlier:
            if earlier is not None:
                for chunk in replayed_chunks(earlier):
                    yield chunk
                return
            async with self._turn(asked, received, streaming=True) as turn:
                streams = [self._chunks(turn, one) for one in turn.alternatives]
                async with contextlib.aclosing(streams[0] if len(streams) == 1 else interleaved(streams)) as chunks:
                    async for chunk in chunks:
                        yield chunk

    async def abort_all(self) -> None:
        """Ends every running call with UNAVAILABLE; returns once their responses are logged."""
        for one in list(self._running):
            with contextlib.suppress(Exception):  # a dead engine has told them already
                await one.generation.interrupt()
        await self.settle()

    async def settle(self) -> None:
        """Waits until what was cut short is logged."""
        while self._settling:
            await asyncio.wait(self._settling)

    async def _chunks(self, turn: Turn, one: Alternative) -> AsyncGenerator[chat_pb2.ChatChunk, None]:
        while one.generation.finish_reason is None:
            piece = one.take(await one.generation.next_text())
            # What has no text yet (half a character, the end of the turn) goes with what follows.
            if (chunk := one.chunk(piece)) is not None:
                one.messages_sent += 1
                yield chunk
        yield one.last_chunk(await self._end(turn, one))

    def _understand(self, request: chat_pb2.ChatRequest, caller: Caller) -> tuple[Asked, Received]:
        """Raises what is wrong with the request by itself."""
        received = Received(time.monotonic(), now_unix_ms())
        persona = self.personas.find(caller.tenant, request.persona)
        _check_request(request)
        if request.policy_id:
            caller.require(Role.OPERATE)
            policy_number(request.policy_id)
        tools = offered_tools(persona.offered_tools, request.tools, request.tool_choice)
        consent = resolve_consent(request.consent, self.tenants.get(caller.tenant))
        return Asked(request, caller, persona, consent, tools), received

    @contextlib.asynccontextmanager
    async def _once(self, asked: Asked) -> AsyncIterator[chat_pb2.ChatResponse | None]:
        """Holds the client's request id, if there is one; gives the answer that was given under it before."""
        if not asked.request.client_request_id:
            yield None
            return
        name = asked.caller.tenant, _KIND, asked.request.client_request_id
        digest = hashlib.sha256(asked.request.SerializeToString(deterministic=True)).digest()
        stored = self.idempotency.begin(name, digest)
        if stored is not None:
            earlier = chat_pb2.ChatResponse.FromString(stored)
            earlier.replayed = True
            yield earlier
            return
        try:
            yield None
        finally:
            self.idempotency.release(name)

    @contextlib.asynccontextmanager
    async def _turn(self, asked: Asked, received: Received, *, streaming: bool) -> AsyncIterator[Turn]:
        """Admits, begins, and settles: afterwards nothing of the call is held, however it ended."""
        prompt_token_ids = await self._render(asked)
        sampling = resolve_sampling(
            asked.request.sampling,
            asked.persona.sampling,
            asked.persona.limits,
            prompt_tokens=len(prompt_token_ids),
            model_tokens=self.engine.model_tokens,
        )
        grammar = self.parsing.forced_call(asked.tools, asked.request.tool_choice)
        if grammar is None:
            grammar = await self.grammars.prepare(asked.request.response_format)
        else:
            await self.grammars.try_out(grammar, "tools")
        number = asked.request.alternatives or 1
        most_tokens = len(prompt_token_ids) + number * sampling.max_tokens
        ticket = self.admission.enter(asked.caller.tenant, most_tokens, number)
        try:
            charge = self.quotas.charge(asked.caller, most_tokens)
        except AttuneError:
            ticket.leave()
            raise
        in_flight = metrics.REQUESTS_IN_FLIGHT.labels(asked.persona.label)
        in_flight.inc()
        turn = Turn(asked, received, prompt_token_ids, sampling)
        try:
            await self._begin(turn, number, grammar, streaming=streaming)
            yield turn
        finally:
            open_ones = [one for one in turn.alternatives if not one.ended]
            if open_ones:
                await asyncio.shield(self._own(self._cut_short(open_ones)))
            self._running.difference_update(turn.alternatives)
            in_flight.dec()
            charge.settle(turn.tokens)
            ticket.leave()

    async def _begin(self, turn: Turn, number: int, grammar: Grammar | None, *, streaming: bool) -> None:
        """Begins every alternative; what began is in the turn, also when a later one fails."""
        asked = turn.asked
        persona, request = asked.persona, asked.request
        conversation_id = request.conversation_id or new_conversation_id()
        response_ids = [self.keys.signing.new_response_id(persona.tenant) for _ in range(number)]
        for index, response_id in enumerate(response_ids):
            drawn = turn.sampling if index == 0 else _drawn_again(turn.sampling, index)
            reservation = self._reserve(turn)
            lease = None
            try:
                lease = self.policies.lease(persona, conversation_id, pinned=request.policy_id)
                parser = self.parsing.parser(asked.tools, request.tool_choice, streaming=streaming)
                generation = await self.engine.generate(
                    turn.prompt_token_ids,
                    drawn,
                    tenant=persona.tenant,
                    adapter=lease.adapter,
                    streaming=streaming,
                    top_logprobs=request.top_logprobs,
                    grammar=grammar,
                    keep_special=parser is not None,
                )
            except BaseException:
                for held in (lease, reservation):
                    if held is not None:
                        held.release()
                raise
            origin = Origin(
                response_id=response_id,
                request_group=response_ids[0],
                alternative=index,
                tenant=persona.tenant,
                persona=persona.name,
                persona_version=persona.version,
                policy_id=lease.policy_id,
                conversation_id=conversation_id,
                end_user=hash_end_user(persona.tenant, request.end_user_id, self.keys.end_user),
                consent=asked.consent,
                tools=asked.tools,
                grammar_masked=grammar is not None,
                prompt_token_ids=turn.prompt_token_ids,
                sampling=drawn,
                received_unix_ms=turn.received.unix_ms,
                received_seconds=turn.received.seconds,
            )
            one = Alternative(request, origin, lease, reservation, generation, parser, self.template)
            turn.alternatives.append(one)
            self._running.add(one)
        metrics.PROMPT_TOKENS.labels(persona.label).inc(len(turn.prompt_token_ids))

    def _reserve(self, turn: Turn) -> Reservation | None:
        """Space for one response, as large as it may become; none where storing was denied."""
        if not turn.asked.consent.store:
            return None
        nbytes = largest_event_bytes(
            turn.asked.request,
            tools=turn.asked.tools,
            prompt_tokens=len(turn.prompt_token_ids),
            max_tokens=turn.sampling.max_tokens,
            max_token_bytes=self.template.max_token_bytes,
        )
        return self.log.reserve(nbytes, RESPONSES)

    async def _render(self, asked: Asked) -> list[int]:
        system_prompt = asked.persona.system_prompt
        arguments = system_prompt, asked.request.messages, asked.tools
        size = len(system_prompt) + asked.request.ByteSize() + sum(tool.ByteSize() for tool in asked.tools)
        if size <= _RENDER_INLINE_CHARACTERS:
            return self.template.render(*arguments)
        return await asyncio.to_thread(self.template.render, *arguments)

    async def _end(self, turn: Turn, one: Alternative) -> chat_pb2.Response:
        """Logs, durably, what the engine ended; raises Unavailable when that was aborted or cannot be logged.

        With the last alternative the whole answer is kept under the client's request id, if there is one.
        """
        finish_reason = _FINISH.get(one.generation.finish_reason or "")
        if finish_reason is None:
            raise Unavailable("the response was cut short; the server is stopping or its engine failed")
        one.finish(finish_reason)
        one.lease.release()
        await self._record(one)
        token = ""
        if one.reservation is not None:
            handle = feedback_handle(one.origin, good_for_seconds=self.feedback_token_seconds)
            token = self.keys.signing.sign_token(handle)
        response = one.response(token)
        turn.responses[one.origin.alternative] = response
        request_id = turn.asked.request.client_request_id
        if request_id and len(turn.responses) == len(turn.alternatives):
            await self.idempotency.finish(
                (turn.asked.caller.tenant, _KIND, request_id),
                turn.answer().SerializeToString(),
                durable=turn.asked.consent.store,
            )
        return response

    async def _cut_short(self, alternatives: list[Alternative]) -> None:
        for one in alternatives:
            await one.generation.abort()
            one.finish(event_pb2.FINISH_REASON_ABORTED)
            one.lease.release()
        for one in alternatives:
            try:
                await self._record(one)
            except AttuneError as error:
                logger.error(
                    "aborted response not logged",
                    extra={"response_id": one.origin.response_id, "reason": error.message},
                )

    async def _record(self, one: Alternative) -> None:
        """Returns once the event is durable; where storing was denied nothing is written."""
        generation, origin, reservation = one.generation, one.origin, one.reservation
        label = persona_label(origin.tenant, origin.persona)
        metrics.OUTPUT_TOKENS.labels(label).inc(len(generation.token_ids))
        metrics.STREAM_MESSAGES.labels(label).inc(one.messages_sent)
        if generation.first_token_seconds is not None:
            waited_seconds = generation.first_token_seconds - origin.received_seconds
            metrics.TIME_TO_FIRST_TOKEN.labels(label).observe(waited_seconds)
        if reservation is None:
            return
        try:
            event = response_event(one.request, origin, self.hashes, one.captured(), end_seconds=time.monotonic())
            written = self.log.append(
                RESPONSES, origin.conversation_id.encode(), event.SerializeToString(), reservation
            )
        except BaseException:
            reservation.release()
            raise
        try:
            # Not to be cancelled with the call: the record is on its way.
            await asyncio.shield(asyncio.wrap_future(written))
        except AttuneError:
            reservation.release()
            raise
        metrics.RESPONSES.labels(label, FINISH_REASONS.of[one.finish_reason]).inc()

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work that goes on when its caller is gone."""
        task = asyncio.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task


def _drawn_again(sampling: event_pb2.Sampling, index: int) -> event_pb2.Sampling:
    """The same, with another seed for another alternative."""
    if not sampling.HasField("seed"):
        return sampling
    other = event_pb2.Sampling()
    other.CopyFrom(sampling)
    other.seed = (sampling.seed + index) % (MAX_SEED + 1)
    return other


def _check_request(request: chat_pb2.ChatRequest) -> None:
    check_messages(request.messages)
    check_length(request.conversation_id, MAX_ID_CHARACTERS, "conversation_id")
    check_length(request.client_request_id, MAX_ID_CHARACTERS, "client_request_id")
    check_length(request.end_user_id, MAX_END_USER_CHARACTERS, "end_user_id")
    check_metadata(request.metadata)
    if request.alternatives > MAX_ALTERNATIVES:
        raise InvalidInput(
            f"alternatives is {request.alternatives}; at most {MAX_ALTERNATIVES} are generated", field="alternatives"
        )
    if request.top_logprobs > MAX_TOP_LOGPROBS:
        raise InvalidInput(
            f"top_logprobs is {request.top_logprobs}; at most {MAX_TOP_LOGPROBS} are told", field="top_logprobs"
        )
