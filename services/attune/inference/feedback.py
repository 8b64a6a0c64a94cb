"""Feedback: checked, then durably logged. The core behind gRPC and HTTP."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Any

import grpc

from attune import metrics
from attune.access import Caller, Role
from attune.chat.limits import MAX_END_USER_CHARACTERS, MAX_ID_CHARACTERS, check_length
from attune.errors import AttuneError, InvalidInput, NotFound, PermissionDenied, Unauthenticated, status_of
from attune.eventlog.log import FEEDBACK, EventLog
from attune.ids import hash_end_user, persona_label
from attune.inference.capture import event_header
from attune.inference.idempotency import Idempotency, Name
from attune.inference.in_order import answered_in_order
from attune.inference.signals import check_request, signal_label, signal_name
from attune.keys import Keys
from attune.personas.store import Personas
from attune.v1 import event_pb2, feedback_pb2

MAX_RESPONSE_ID_CHARACTERS = 128
MAX_TOKEN_CHARACTERS = 4096

_KIND = "feedback"


@dataclass(eq=False)
class Feedback:
    """Takes what people say about responses. A token says by itself whose feedback it is, and needs no key.

    Whether the response that a bare id names is there at all, and whether ranked responses share a prompt, only the
    lake knows; here signatures and tenants are checked.
    """

    log: EventLog
    keys: Keys
    personas: Personas
    idempotency: Idempotency

    async def submit(
        self, request: feedback_pb2.SubmitFeedbackRequest, caller: Caller
    ) -> feedback_pb2.SubmitFeedbackResponse:
        """Returns once the feedback is durable; a duplicate says so and writes nothing."""
        event = self._event(request, caller)
        if not request.client_feedback_id:
            await self._append(event)
            return feedback_pb2.SubmitFeedbackResponse(feedback_id=event.header.event_id)
        # Of whom it is the same request: a browser's token stands for one person.
        who = event.end_user if caller.key_id == "" else ""
        name: Name = (event.header.tenant, _KIND, f"{who}/{request.client_feedback_id}")
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        earlier = self.idempotency.begin(name, digest)
        if earlier is not None:
            return feedback_pb2.SubmitFeedbackResponse(feedback_id=earlier.decode(), duplicate=True)
        try:
            await self._append(event)
            # The feedback is safe. Were its id forgotten in a crash, the lake would still settle a second one.
            self.idempotency.finish_soon(name, event.header.event_id.encode())
        finally:
            self.idempotency.release(name)
        return feedback_pb2.SubmitFeedbackResponse(feedback_id=event.header.event_id)

    def submit_batch(
        self, requests: AsyncIterator[feedback_pb2.SubmitFeedbackRequest], caller: Caller
    ) -> AsyncIterator[feedback_pb2.SubmitFeedbackResult]:
        """One result for each, in their order; what is refused does not end the stream."""

        async def one(index: int, request: feedback_pb2.SubmitFeedbackRequest) -> feedback_pb2.SubmitFeedbackResult:
            try:
                accepted = await self.submit(request, caller)
            except AttuneError as error:
                return feedback_pb2.SubmitFeedbackResult(index=index, refused=refusal(error))
            return feedback_pb2.SubmitFeedbackResult(index=index, accepted=accepted)

        return answered_in_order(requests, one)

    async def _append(self, event: event_pb2.FeedbackEvent) -> None:
        key = (event.conversation_id or event.response_id).encode()
        await asyncio.shield(asyncio.wrap_future(self.log.append(FEEDBACK, key, event.SerializeToString())))
        metrics.FEEDBACK.labels(persona_label(event.header.tenant, event.persona), signal_label(event)).inc()

    def _event(self, request: feedback_pb2.SubmitFeedbackRequest, caller: Caller) -> event_pb2.FeedbackEvent:
        ranking = self._ranking(request, caller) if request.WhichOneof("signal") == "ranking" else None
        handle = ranking[0] if ranking is not None else self._subject(request, caller)
        kind = check_request(request, self._tags(handle))
        check_length(request.client_feedback_id, MAX_ID_CHARACTERS, "client_feedback_id")
        if handle.conversation_id and not handle.response_id and kind != "outcome":
            raise InvalidInput(f"a conversation takes outcomes, not {kind}", field="conversation_id")
        event = event_pb2.FeedbackEvent(
            header=event_header(handle.tenant),
            response_id=handle.response_id,
            persona=handle.persona,
            conversation_id=handle.conversation_id,
            end_user=handle.end_user,
            revision=request.revision,
            retracted=request.retracted,
            comment=request.comment,
            tags=sorted(set(request.tags)),
            author=_author(request, caller),
            guideline_version=request.guideline_version,
            propensity=request.propensity if request.HasField("propensity") else None,
            client_feedback_id=request.client_feedback_id,
        )
        if ranking is not None:
            event.ranking.CopyFrom(ranking[1])
        else:
            _copy_signal(request, event, kind)
        event.name = signal_name(event)
        return event

    def _tags(self, handle: feedback_pb2.FeedbackHandle) -> Collection[str]:
        """The persona's vocabulary; where a bare id does not say whose response it is, all of the tenant's."""
        personas = self.personas.of(handle.tenant)
        return {tag for one in personas if handle.persona in ("", one.name) for tag in one.feedback_tags}

    def _ranking(
        self, request: feedback_pb2.SubmitFeedbackRequest, caller: Caller
    ) -> tuple[feedback_pb2.FeedbackHandle, event_pb2.Ranking]:
        """Whose ranking, under the smallest of its responses' ids."""
        if request.WhichOneof("subject") is not None:
            raise InvalidInput("a ranking names its responses itself; leave the subject out", field="ranking")
        check_request(request, request.tags)
        handles = []
        for entry in request.ranking.entries:
            match entry.WhichOneof("subject"):
                case "feedback_token":
                    handles.append(self._by_token(entry.feedback_token))
                case "response_id":
                    handles.append(self._by_id(entry.response_id, request.end_user_id, caller))
                case _:
                    raise InvalidInput("a ranking's entry names no response", field="ranking.entries")
        if len({handle.response_id for handle in handles}) < len(handles):
            raise InvalidInput("a response is ranked twice", field="ranking.entries")
        for name, what in (("tenant", "tenants"), ("end_user", "people"), ("persona", "personas")):
            if len({getattr(handle, name) for handle in handles if getattr(handle, name)}) > 1:
                raise InvalidInput(f"the ranked responses are of different {what}", field="ranking.entries")
        if len({handle.prompt_digest for handle in handles if handle.prompt_digest}) > 1:
            raise InvalidInput("the ranked responses answer different prompts", field="ranking.entries")
        ranks = [entry.rank for entry in request.ranking.entries]
        entries = sorted(zip(ranks, (handle.response_id for handle in handles), strict=True))
        ranking = event_pb2.Ranking(
            entries=[event_pb2.Ranking.Entry(response_id=response_id, rank=rank) for rank, response_id in entries]
        )
        return min(handles, key=lambda handle: handle.response_id), ranking

    def _subject(self, request: feedback_pb2.SubmitFeedbackRequest, caller: Caller) -> feedback_pb2.FeedbackHandle:
        """Whose feedback on what; of a bare response id, persona and conversation stay empty."""
        match request.WhichOneof("subject"):
            case "feedback_token":
                if request.end_user_id:
                    raise InvalidInput(
                        "end_user_id goes with a response_id; the feedback token says by itself whose it is",
                        field="end_user_id",
                    )
                return self._by_token(request.feedback_token)
            case "response_id":
                return self._by_id(request.response_id, request.end_user_id, caller)
            case "conversation_id":
                _need_key(caller)
                check_length(request.end_user_id, MAX_END_USER_CHARACTERS, "end_user_id")
                if not 1 <= len(request.conversation_id) <= MAX_ID_CHARACTERS:
                    raise InvalidInput(
                        f"conversation_id has {len(request.conversation_id)} characters; it must have 1 to "
                        f"{MAX_ID_CHARACTERS}",
                        field="conversation_id",
                    )
                return feedback_pb2.FeedbackHandle(
                    tenant=caller.tenant,
                    conversation_id=request.conversation_id,
                    end_user=hash_end_user(caller.tenant, request.end_user_id, self.keys.end_user),
                )
            case _:
                raise InvalidInput(
                    "nothing says what the feedback is about; set feedback_token, response_id or conversation_id",
                    field="feedback_token",
                )

    def _by_token(self, token: str) -> feedback_pb2.FeedbackHandle:
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise PermissionDenied("the feedback token is not one that this server signed")
        return self.keys.signing.read_token(token, time.time())

    def _by_id(self, response_id: str, end_user_id: str, caller: Caller) -> feedback_pb2.FeedbackHandle:
        _need_key(caller)
        check_length(end_user_id, MAX_END_USER_CHARACTERS, "end_user_id")
        if len(response_id) > MAX_RESPONSE_ID_CHARACTERS:
            raise NotFound("no such response", field="response_id")
        self.keys.signing.check_response_id(response_id, caller.tenant)
        return feedback_pb2.FeedbackHandle(
            tenant=caller.tenant,
            response_id=response_id,
            end_user=hash_end_user(caller.tenant, end_user_id, self.keys.end_user),
        )


def refusal(error: AttuneError) -> feedback_pb2.Refusal:
    """An error as a result within a stream."""
    code: int = grpc.StatusCode[status_of(error).grpc].value[0]
    return feedback_pb2.Refusal(code=code, message=error.message, field=error.field or "")


def _need_key(caller: Caller) -> None:
    """A bare id says nothing of who may: that takes a key."""
    if not caller.key_id:
        raise Unauthenticated("without a feedback token an API key is needed: authorization: Bearer ak-...")
    caller.require(Role.FEEDBACK, Role.REVIEW)


def _author(request: feedback_pb2.SubmitFeedbackRequest, caller: Caller) -> "event_pb2.Author.ValueType":
    match request.author:
        case event_pb2.AUTHOR_REVIEWER:
            caller.require(Role.REVIEW)
        case event_pb2.AUTHOR_APPLICATION:
            caller.require(Role.FEEDBACK)
        case _:
            return event_pb2.AUTHOR_END_USER
    return request.author


def _copy_signal(request: feedback_pb2.SubmitFeedbackRequest, event: event_pb2.FeedbackEvent, kind: str) -> None:
    signal: Any = getattr(request, kind)
    if kind in ("thumb", "rating", "implicit"):
        # Set even if unspecified: the field that is set says which kind of signal is taken back.
        setattr(event, kind, signal)
    else:
        getattr(event, kind).CopyFrom(signal)
        getattr(event, kind).SetInParent()
