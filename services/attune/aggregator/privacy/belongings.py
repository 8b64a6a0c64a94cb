"""What in the lake is one person's.

Theirs are the responses that they were given and the feedback that they gave; of others the feedback about those
responses and conversations, responses to nobody in particular in those conversations, and responses to others that go
on from one of theirs, for they hold it word for word.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from attune.erasures import Request
from attune.errors import Unavailable
from attune.lake.lake import Lake

_COLUMNS = ("event_id", "response_id", "conversation_id", "end_user", "persona")


@dataclass
class Belongings:
    """By their ids; `of_others` counts the events that others made."""

    response_events: set[str] = field(default_factory=set)
    feedback_ids: set[str] = field(default_factory=set)
    response_ids: set[str] = field(default_factory=set)
    conversation_ids: set[str] = field(default_factory=set)
    of_others: int = 0

    def as_json(self) -> dict[str, Any]:
        return {name: sorted(value) if isinstance(value, set) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Belongings":
        sets = {name: set(content[name]) for name in cls.__dataclass_fields__ if name != "of_others"}
        return cls(**sets, of_others=content["of_others"])


def is_in(column: str, values: set[str]) -> pc.Expression:
    return pc.field(column).isin(pa.array(sorted(values), pa.string()))


def find_belongings(lake: Lake, request: Request, known: Belongings) -> Belongings:
    """What is known already, and what is in the versions that the lake's handles stand on."""
    found = Belongings(
        set(known.response_events), set(known.feedback_ids), set(known.response_ids), set(known.conversation_ids)
    )
    tenant = pc.field("tenant") == request.tenant
    theirs = (
        tenant
        & (pc.field("end_user") == request.person)
        & (pc.field("created_unix_ms") <= pa.scalar(request.requested_unix_ms, pa.int64()))
    )
    for row in _rows(lake.responses.handle, theirs, _COLUMNS):
        found.response_events.add(row["event_id"])
        found.response_ids.add(row["response_id"])
        found.conversation_ids.add(row["conversation_id"])
    found.conversation_ids.discard("")
    for row in _others_responses(lake, request, tenant, found.conversation_ids):
        found.of_others += row["event_id"] not in found.response_events
        found.response_events.add(row["event_id"])
        found.response_ids.add(row["response_id"])

    own = {row["event_id"] for row in _rows(lake.feedback.handle, theirs, _COLUMNS)}
    about = tenant & (
        is_in("response_id", found.response_ids)
        | (is_in("conversation_id", found.conversation_ids) & (pc.field("response_id") == ""))
    )
    others = {row["event_id"] for row in _rows(lake.feedback.handle, about, _COLUMNS)}
    rankings = _rows(lake.feedback.handle, tenant & (pc.field("kind") == "ranking"), ("event_id", "ranking"))
    others |= {
        row["event_id"]
        for row in rankings
        if not found.response_ids.isdisjoint(entry["response_id"] for entry in row["ranking"] or ())
    }
    found.of_others += known.of_others + len(others - own - found.feedback_ids)
    found.feedback_ids |= own | others
    return found


def _others_responses(
    lake: Lake, request: Request, tenant: pc.Expression, conversations: set[str]
) -> Iterator[dict[str, Any]]:
    if not conversations:
        return
    columns = (*_COLUMNS, "messages", "created_unix_ms")
    rows = list(_rows(lake.responses.handle, tenant & is_in("conversation_id", conversations), columns))
    told: dict[str, list[Any]] = {}
    for row in rows:
        if row["end_user"] == request.person and row["created_unix_ms"] <= request.requested_unix_ms:
            told.setdefault(row["conversation_id"], []).append(row["messages"])
    for row in rows:
        if row["end_user"] == request.person:
            continue
        goes_on = any(
            len(row["messages"]) > len(messages) > 0 and row["messages"][: len(messages)] == messages
            for messages in told.get(row["conversation_id"], ())
        )
        if not row["end_user"] or goes_on:
            yield row


def _rows(handle: Any, wanted: pc.Expression, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        for batch in handle.to_pyarrow_dataset().scanner(columns=list(columns), filter=wanted).to_batches():
            yield from batch.to_pylist()
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise Unavailable(f"the lake cannot be read: {error}") from error
