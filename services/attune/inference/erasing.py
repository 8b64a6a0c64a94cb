"""Forgetting people: the inference service's part.

What it keeps of them is in the event log and under request ids.

Records that Kafka refused stand beside the event log, and go with it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from attune.erasures import FOUND, INFERENCE, Erasures, Request
from attune.errors import AttuneError
from attune.eventlog import FEEDBACK, Record, SqliteLog
from attune.eventlog.refused import RefusedRecords
from attune.inference.idempotency import Idempotency, Name
from attune.runtime import pause
from attune.v1 import chat_pb2, event_pb2

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
# Appending waits while a file is rewritten.
_AGAIN_SECONDS = 15.0


@dataclass(eq=False)
class Forgetting:
    """Looks for erasures whose turn it is, and says in `inference.json` what was removed."""

    erasures: Erasures
    log: SqliteLog
    idempotency: Idempotency
    refused: RefusedRecords

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            pause_seconds = _LOOK_SECONDS
            try:
                await self.turn()
            except (AttuneError, OSError) as error:
                logger.error("an erasure is tried again", extra={"reason": str(error)})
                pause_seconds = _AGAIN_SECONDS
            await pause(stopping, pause_seconds)

    async def turn(self) -> None:
        for request in await asyncio.to_thread(self.erasures.running):
            found = self.erasures.read(request.erasure_id, FOUND)
            if found is None or not found["in_lake"] or self.erasures.read(request.erasure_id, INFERENCE) is not None:
                continue
            theirs = Theirs.of(request, found)
            records = await asyncio.wrap_future(self.log.erase(theirs.record))
            records += await asyncio.to_thread(self.refused.erase, theirs.record)
            self.idempotency.forget(theirs.answer)
            answers = await asyncio.to_thread(self.idempotency.erase, theirs.answer)
            self.erasures.write(request.erasure_id, INFERENCE, {"records": records, "answers": answers})
            logger.info("a person was forgotten", extra={"erasure_id": request.erasure_id})


@dataclass(frozen=True)
class Theirs:
    """Tells what is a person's."""

    request: Request
    response_ids: frozenset[str]
    feedback_ids: frozenset[str]
    conversation_ids: frozenset[str]

    @classmethod
    def of(cls, request: Request, found: dict[str, Any]) -> "Theirs":
        return cls(request, *(frozenset(found[name]) for name in ("response_ids", "feedback_ids", "conversation_ids")))

    def record(self, record: Record) -> bool:
        """What cannot be read is theirs if it holds their name: nobody else can say whose it is."""
        kind: Callable[[], Any] = event_pb2.FeedbackEvent if record.topic == FEEDBACK else event_pb2.ResponseEvent
        event = kind()
        try:
            event.ParseFromString(record.payload)
        except DecodeError:
            return self.request.person.encode() in record.payload
        return event.header.tenant == self.request.tenant and self._event(event, record.topic)

    def _event(self, event: Any, topic: str) -> bool:
        if event.end_user == self.request.person:
            return bool(event.header.created_unix_ms <= self.request.requested_unix_ms)
        ranked = {entry.response_id for entry in event.ranking.entries} if topic == FEEDBACK else set()
        if event.response_id in self.response_ids or not ranked.isdisjoint(self.response_ids):
            return True
        of_all = not event.response_id if topic == FEEDBACK else not event.end_user
        return of_all and event.conversation_id in self.conversation_ids

    def answer(self, name: Name, answer: bytes) -> bool:
        tenant, kind, client_id = name
        if tenant != self.request.tenant:
            return False
        if client_id.startswith(f"{self.request.person}/") or answer.decode("utf-8", "ignore") in self.feedback_ids:
            return True
        if kind != "chat":
            return False
        with contextlib.suppress(DecodeError):
            kept = chat_pb2.ChatResponse.FromString(answer)
            return any(response.response_id in self.response_ids for response in kept.responses)
        return False
