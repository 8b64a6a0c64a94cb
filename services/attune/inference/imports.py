"""Answers that attune did not generate: checked, then durably logged as such."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from attune import metrics
from attune.access import Caller
from attune.chat.limits import MAX_END_USER_CHARACTERS, MAX_ID_CHARACTERS, check_length, check_metadata
from attune.chat.messages import check_messages, count_turns
from attune.chat.tools import offered_tools
from attune.clock import now_unix_ms
from attune.errors import AttuneError, InvalidInput
from attune.eventlog.log import RESPONSES, EventLog
from attune.ids import hash_end_user
from attune.inference.capture import SCHEMA_VERSION, resolve_consent
from attune.inference.feedback import refusal
from attune.inference.idempotency import Idempotency, Name
from attune.inference.in_order import answered_in_order
from attune.keys import Keys
from attune.personas.persona import Persona
from attune.personas.store import Personas
from attune.settings import TenantSettings
from attune.v1 import event_pb2, feedback_pb2

MAX_ANSWERS = 16

_KIND = "import"
_DAY_MS = 86_400_000
_SOURCES = {
    event_pb2.SOURCE_UNSPECIFIED: event_pb2.SOURCE_IMPORTED,
    event_pb2.SOURCE_IMPORTED: event_pb2.SOURCE_IMPORTED,
    event_pb2.SOURCE_TEACHER: event_pb2.SOURCE_TEACHER,
}


@dataclass(eq=False)
class Imports:
    """Takes answers from elsewhere. The ids of responses and events follow from the import's own id.

    So a record that is sent again adds nothing: here for as long as request ids are kept, and afterwards in the lake,
    which keeps the first of each event id. No token ids are logged: no policy of ours sampled these answers.
    """

    log: EventLog
    keys: Keys
    personas: Personas
    idempotency: Idempotency
    tenants: Mapping[str, TenantSettings] = field(default_factory=dict)

    def take_all(
        self, requests: AsyncIterator[feedback_pb2.ImportResponseRequest], caller: Caller
    ) -> AsyncIterator[feedback_pb2.ImportResponseResult]:
        """One result for each, in their order; what is refused does not end the stream."""

        async def one(index: int, request: feedback_pb2.ImportResponseRequest) -> feedback_pb2.ImportResponseResult:
            try:
                accepted = await self.take(request, caller)
            except AttuneError as error:
                return feedback_pb2.ImportResponseResult(index=index, refused=refusal(error))
            return feedback_pb2.ImportResponseResult(index=index, accepted=accepted)

        return answered_in_order(requests, one)

    async def take(self, request: feedback_pb2.ImportResponseRequest, caller: Caller) -> feedback_pb2.ImportedResponses:
        """Returns once every answer is durable; a duplicate says so and writes nothing."""
        persona = self._check(request, caller)
        events = self._events(request, persona)
        imported = feedback_pb2.ImportedResponses(
            conversation_id=events[0].conversation_id, response_ids=[event.response_id for event in events]
        )
        name: Name = (caller.tenant, _KIND, request.import_id)
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        if self.idempotency.begin(name, digest) is not None:
            imported.duplicate = True
            return imported
        try:
            key = imported.conversation_id.encode()
            written = [self.log.append(RESPONSES, key, event.SerializeToString()) for event in events]
            await asyncio.gather(*(asyncio.shield(asyncio.wrap_future(one)) for one in written))
            await self.idempotency.finish(name, b"imported", durable=True)
        finally:
            self.idempotency.release(name)
        metrics.RESPONSES.labels(persona.label, "imported").inc(len(events))
        return imported

    def _check(self, request: feedback_pb2.ImportResponseRequest, caller: Caller) -> Persona:
        if not 1 <= len(request.import_id) <= MAX_ID_CHARACTERS:
            raise InvalidInput(
                f"import_id has {len(request.import_id)} characters; it must have 1 to {MAX_ID_CHARACTERS}",
                field="import_id",
            )
        persona = self.personas.find(caller.tenant, request.persona)
        check_messages(request.messages)
        offered_tools((), request.tools, event_pb2.ToolChoice())
        if not 1 <= len(request.answers) <= MAX_ANSWERS:
            raise InvalidInput(
                f"there are {len(request.answers)} answers; there must be 1 to {MAX_ANSWERS}", field="answers"
            )
        for index, answer in enumerate(request.answers):
            if answer.role != event_pb2.ROLE_ASSISTANT or answer.tool_call_id:
                raise InvalidInput(f"answers[{index}] is not from the assistant", field=f"answers[{index}].role")
            if not answer.content and not answer.tool_calls:
                raise InvalidInput(f"answers[{index}] is empty", field=f"answers[{index}].content")
        if request.source not in _SOURCES:
            raise InvalidInput("source must be IMPORTED (2) or TEACHER (3)", field="source")
        check_length(request.conversation_id, MAX_ID_CHARACTERS, "conversation_id")
        check_length(request.end_user_id, MAX_END_USER_CHARACTERS, "end_user_id")
        check_metadata(request.metadata)
        if not 0 <= request.created_unix_ms <= now_unix_ms() + _DAY_MS:
            raise InvalidInput(
                f"created_unix_ms is {request.created_unix_ms}; it must be 0 or a time that has been",
                field="created_unix_ms",
            )
        if not resolve_consent(request.consent, self.tenants.get(caller.tenant)).store:
            raise InvalidInput("what may not be stored cannot be imported", field="consent.store")
        return persona

    def _events(self, request: feedback_pb2.ImportResponseRequest, persona: Persona) -> list[event_pb2.ResponseEvent]:
        tenant, import_id = persona.tenant, request.import_id
        ids = [
            self.keys.signing.imported_response_id(tenant, import_id, index) for index in range(len(request.answers))
        ]
        created_unix_ms = request.created_unix_ms or now_unix_ms()
        conversation = hashlib.sha256(f"conversation\0{ids[0]}".encode()).hexdigest()
        return [
            event_pb2.ResponseEvent(
                header=event_pb2.EventHeader(
                    event_id=hashlib.sha256(f"import\0{response_id}".encode()).hexdigest()[:32],
                    schema_version=SCHEMA_VERSION,
                    tenant=tenant,
                    created_unix_ms=created_unix_ms,
                ),
                response_id=response_id,
                persona=persona.name,
                persona_version=persona.version,
                request_group=ids[0],
                alternative=index,
                conversation_id=request.conversation_id or f"c-{conversation[:32]}",
                turn=count_turns(request.messages),
                client_request_id=import_id,
                end_user=hash_end_user(tenant, request.end_user_id, self.keys.end_user),
                source=_SOURCES[request.source],
                consent=resolve_consent(request.consent, self.tenants.get(tenant)),
                metadata=request.metadata,
                messages=request.messages,
                tools=request.tools,
                finish_reason=event_pb2.FINISH_REASON_STOP,
                text=answer.content,
                tool_calls=answer.tool_calls,
                reasoning=answer.reasoning,
                timings=event_pb2.Timings(received_unix_ms=created_unix_ms),
            )
            for index, (response_id, answer) in enumerate(zip(ids, request.answers, strict=True))
        ]
