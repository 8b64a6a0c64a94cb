"""The RPC that shows events as they come: to whoever operates a tenant, and that tenant's alone."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from attune.access import CALLER
from attune.aggregator.privacy.scrubber import Scrubber
from attune.errors import ResourceExhausted
from attune.eventlog import FEEDBACK, RESPONSES, Record
from attune.eventlog.follower import Follower
from attune.ids import DEFAULT_TENANT, check_name
from attune.lake import tables
from attune.lake.rows import PoisonousRecord, row_of
from attune.lake.tables import Position
from attune.v1 import dataset_pb2, dataset_pb2_grpc

MOST_TAILS = 4
_PAUSE_SECONDS = 0.2
_TABLES = {RESPONSES: tables.RESPONSES, FEEDBACK: tables.FEEDBACK}

Row = Mapping[str, Any]


@dataclass(eq=False)
class LogService(dataset_pb2_grpc.LogServiceServicer):
    """Opens a follower for each caller; none of them holds back trimming."""

    open_follower: Callable[[], Follower]
    scrubber: Scrubber | None
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_TAILS))

    async def TailLog(
        self, request: dataset_pb2.TailLogRequest, context: Any
    ) -> AsyncIterator[dataset_pb2.TailLogResponse]:
        if request.persona:
            check_name(request.persona, "persona")
        wanted = Wanted(CALLER.get().tenant, request, self.scrubber)
        if self.places.locked():
            raise ResourceExhausted(f"{MOST_TAILS} are looking on; no more at once", retry_after_seconds=30)
        async with self.places:
            look = _Look(await asyncio.to_thread(self.open_follower), wanted)
            try:
                yield dataset_pb2.TailLogResponse(start=dataset_pb2.TailStart())
                while True:
                    missed, events = await asyncio.to_thread(look.next)
                    if missed:
                        yield dataset_pb2.TailLogResponse(missed=missed)
                    for event in events:
                        yield dataset_pb2.TailLogResponse(event=event)
                    if not events:
                        await asyncio.sleep(_PAUSE_SECONDS)
            finally:
                asyncio.get_running_loop().run_in_executor(None, look.close)


class _Look:
    """A follower that one thread asks while another may come to close it."""

    def __init__(self, follower: Follower, wanted: "Wanted") -> None:
        self._follower = follower
        self._wanted = wanted
        self._turn = threading.Lock()

    def next(self) -> tuple[int, list[dataset_pb2.LoggedEvent]]:
        with self._turn:
            news = self._follower.look()
        told = (self._wanted.told(record) for record in news.records)
        return news.missed, [event for event in told if event is not None]

    def close(self) -> None:
        with self._turn:
            self._follower.close()


@dataclass(frozen=True)
class Wanted:
    """What one caller asked for, and may know."""

    tenant: str
    request: dataset_pb2.TailLogRequest
    scrubber: Scrubber | None

    def told(self, record: Record) -> dataset_pb2.LoggedEvent | None:
        """None for what is not asked for, and for what is another tenant's."""
        both = self.request.responses == self.request.feedback
        if not both and (record.topic == RESPONSES) != self.request.responses:
            return None
        event = dataset_pb2.LoggedEvent(topic=record.topic, partition=record.partition, offset=record.offset)
        table = _TABLES[record.topic]
        try:
            row = row_of(table, record.payload, Position("", record.partition, record.offset))
        except PoisonousRecord as poison:
            # Nobody knows whose it is.
            event.unreadable = str(poison)
            return event if self.tenant == DEFAULT_TENANT and not self.request.persona else None
        if row["tenant"] != self.tenant or self.request.persona not in ("", row["persona"]):
            return None
        if self.request.text and self.scrubber is not None:
            row = self.scrubber.row(table, row, counted=False)
        for name in ("event_id", "created_unix_ms", "persona", "response_id", "conversation_id", "end_user"):
            setattr(event, name, row[name])
        if record.topic == RESPONSES:
            event.response.CopyFrom(_response(row, self.request.text))
        else:
            event.feedback.CopyFrom(_feedback(row, self.request.text))
        return event


def _response(row: Row, text: bool) -> dataset_pb2.LoggedResponse:
    told = dataset_pb2.LoggedResponse(
        policy_id=row["policy_id"],
        source=row["source"],
        finish_reason=row["finish_reason"],
        prompt_tokens=len(row["prompt_token_ids"]),
        output_tokens=len(row["output_token_ids"]),
        total_ms=row["total_ms"] or 0,
    )
    if text:
        told.prompt = row["messages"][-1]["content"] if row["messages"] else ""
        told.text = row["text"]
    return told


def _feedback(row: Row, text: bool) -> dataset_pb2.LoggedFeedback:
    told = dataset_pb2.LoggedFeedback(
        kind=row["kind"],
        name=row["name"],
        value=_value(row),
        author=row["author"],
        revision=row["revision"],
        retracted=row["retracted"],
    )
    if text:
        told.comment, told.correction = row["comment"], row["correction"] or ""
    return told


def _value(row: Row) -> str:
    if row["kind"] == "ranking":
        return f"{len(row['ranking'] or ())} responses"
    for name in ("thumb", "rating", "outcome_flag", "outcome_number"):
        if row[name] is not None:
            return f"{row[name]:g}" if name == "outcome_number" else str(row[name]).lower()
    return ""
