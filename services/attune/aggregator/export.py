"""The way out of the lake: requests, their answers, and what was said of them."""

import itertools
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from attune.chat.words import AUTHORS, FINISH_REASONS, IMPLICIT_SIGNALS, ROLES, SOURCES, THUMBS
from attune.lake.lake import Lake
from attune.lake.place import Place
from attune.lake.snapshot import Snapshot, open_snapshot
from attune.v1 import dataset_pb2, event_pb2

_QUERY = Path(__file__).with_name("export.sql").read_text(encoding="utf-8")
# Of the same rows as the query, what is counted beforehand, and what belongs to no answer.
_RECORDS = f"SELECT count(DISTINCT request_group) FROM ({_QUERY}) WHERE left_out IS NULL"
_CONVERSATIONS = """
SELECT count(*) FROM feedback WHERE tenant = $tenant AND response_id = '' AND ($persona = '' OR persona = $persona)
"""
_ROWS_AT_ONCE = 200

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What is to be exported."""

    tenant: str
    persona: str = ""
    since_unix_ms: int = 0
    without_feedback: bool = False
    not_for_training: bool = False


def export(lake: Place, wanted: Wanted) -> Generator[dataset_pb2.ExportRecordsResponse, None, None]:
    """The start, the records, the summary. The lake is read at one version, sorted on disk where memory is short.

    Raises an AttuneError when it cannot be read. Closing the iterator ends the query.
    """
    with open_snapshot(Lake(lake)) as snapshot:
        arguments = vars(wanted)
        records = snapshot.rows(_RECORDS, arguments)[0][0]
        yield dataset_pb2.ExportRecordsResponse(start=dataset_pb2.ExportStart(records=records))
        summary = dataset_pb2.ExportSummary()
        left_out: Counter[str] = Counter()
        for answers in _requests(snapshot, arguments):
            left_out.update(row["left_out"] for row in answers if row["left_out"])
            whole = [row for row in answers if not row["left_out"]]
            if not whole:
                continue
            record = _record(whole, left_out)
            summary.records += 1
            summary.answers += len(record.answers)
            summary.feedback += len(record.feedback)
            yield dataset_pb2.ExportRecordsResponse(record=record)
        conversations = {"tenant": wanted.tenant, "persona": wanted.persona}
        left_out["conversation"] += snapshot.rows(_CONVERSATIONS, conversations)[0][0]
        summary.left_out.update({reason: count for reason, count in left_out.items() if count})
        yield dataset_pb2.ExportRecordsResponse(summary=summary)


def _requests(snapshot: Snapshot, arguments: Mapping[str, Any]) -> Iterator[list[Row]]:
    """The answers to one request at a time."""
    rows = itertools.chain.from_iterable(
        batch.to_pylist() for batch in snapshot.batches(_QUERY, arguments, _ROWS_AT_ONCE)
    )
    for _, answers in itertools.groupby(rows, itemgetter("request_group")):
        yield list(answers)


def _record(answers: Sequence[Row], left_out: "Counter[str]") -> dataset_pb2.ExportedRecord:
    first = answers[0]
    served = first["source"] == "served"
    record = dataset_pb2.ExportedRecord(
        import_id=first["request_group"] if served else first["client_request_id"],
        persona=first["persona"],
        messages=[_message(message) for message in first["messages"]],
        tools=[event_pb2.Tool(**tool) for tool in first["tools"] or ()],
        answers=[_answer(row) for row in answers],
        source=SOURCES[first["source"]],
        conversation_id=first["conversation_id"],
        end_user=first["end_user"],
        consent=event_pb2.Consent(store=first["consent_store"], train=first["consent_train"]),
        metadata=dict(first["metadata"] or ()),
        created_unix_ms=first["began"],
        finish_reasons=[FINISH_REASONS[row["finish_reason"]] for row in answers],
    )
    places = {row["response_id"]: place for place, row in enumerate(answers)}
    for row in answers:
        for said in row["said"] or ():
            about = _about(said, row["response_id"], places)
            if about is None:
                left_out["several_requests"] += 1
            else:
                record.feedback.append(_feedback(said, *about))
    return record


def _about(said: Row, response_id: str, places: Mapping[str, int]) -> tuple[list[int], list[int]] | None:
    """Which answers, and of a ranking their ranks; none when it ranks others too."""
    if said["kind"] != "ranking":
        return [places[response_id]], []
    entries = sorted(said["ranking"], key=lambda entry: (entry["rank"], places.get(entry["response_id"], 0)))
    if any(entry["response_id"] not in places for entry in entries):
        return None
    return [places[entry["response_id"]] for entry in entries], [entry["rank"] for entry in entries]


def _feedback(said: Row, answers: Sequence[int], ranks: Sequence[int]) -> dataset_pb2.ExportedFeedback:
    feedback = dataset_pb2.ExportedFeedback(
        answers=answers,
        ranks=ranks,
        end_user=said["end_user"],
        author=AUTHORS[said["author"]],
        comment=said["comment"],
        tags=said["tags"],
        guideline_version=said["guideline_version"],
        propensity=said["propensity"],
        created_unix_ms=said["created_unix_ms"],
    )
    match said["kind"]:
        case "thumb":
            feedback.thumb = THUMBS[said["thumb"]]
        case "rating":
            feedback.rating = said["rating"]
        case "ranking":
            feedback.ranking = True
        case "correction":
            feedback.correction.text = said["correction"]
        case "annotation":
            feedback.annotation.CopyFrom(event_pb2.Annotation(**said["annotation"]))
        case "outcome":
            value = {"flag": said["outcome_flag"], "number": said["outcome_number"]}
            feedback.outcome.CopyFrom(event_pb2.Outcome(name=said["name"], **_given(value)))
        case "implicit":
            feedback.implicit = IMPLICIT_SIGNALS[said["name"]]
        case "remark":
            feedback.remark.SetInParent()
    return feedback


def _answer(row: Row) -> event_pb2.Message:
    return event_pb2.Message(
        role=event_pb2.ROLE_ASSISTANT,
        content=row["text"],
        tool_calls=_calls(row["tool_calls"]),
        reasoning=row["reasoning"] or "",
    )


def _message(message: Row) -> event_pb2.Message:
    return event_pb2.Message(
        role=ROLES[message["role"]],
        content=message["content"],
        tool_calls=_calls(message["tool_calls"]),
        tool_call_id=message["tool_call_id"] or "",
        reasoning=message["reasoning"] or "",
    )


def _calls(calls: Iterable[Mapping[str, str]] | None) -> list[event_pb2.ToolCall]:
    return [event_pb2.ToolCall(**call) for call in calls or ()]


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
