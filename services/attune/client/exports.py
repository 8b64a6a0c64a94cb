"""Records of the lake as lines of a file: the way back from `imports`. One JSON object a line.

Each format is a function from a record to its lines; it raises InvalidInput for what the format has no place for.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attune.chat.words import AUTHORS, FINISH_REASONS, IMPLICIT_SIGNALS, ROLES, SOURCES, THUMBS
from attune.errors import InvalidInput
from attune.v1 import dataset_pb2, event_pb2

_SIDES = {event_pb2.ROLE_USER: "Human", event_pb2.ROLE_ASSISTANT: "Assistant"}
_MARKERS = tuple(f"\n\n{side}:" for side in _SIDES.values())


def lines_of(record: dataset_pb2.ExportedRecord, form: str) -> list[str]:
    """What the record is in this format, perhaps several lines or none. Raises InvalidInput."""
    return [json.dumps(row, ensure_ascii=False) for row in FORMATS[form](record)]


def _attune(record: dataset_pb2.ExportedRecord) -> Iterator[dict[str, Any]]:
    """Everything."""
    consent = {name: getattr(record.consent, name) for name in ("store", "train") if record.consent.HasField(name)}
    yield _filled(
        import_id=record.import_id,
        persona=record.persona,
        messages=[_message(message) for message in record.messages],
        tools=[_filled(name=one.name, description=one.description, parameters=_json(one)) for one in record.tools],
        answers=[_answer(answer) for answer in record.answers],
        feedback=[_feedback(one) for one in record.feedback],
        source=SOURCES.of[record.source],
        conversation_id=record.conversation_id,
        end_user_id=record.end_user,
        consent=consent,
        metadata=dict(sorted(record.metadata.items())),
        created_unix_ms=record.created_unix_ms,
    )


def _hh(record: dataset_pb2.ExportedRecord) -> Iterator[dict[str, Any]]:
    """A line for each pair of which a ranking prefers one."""
    rankings = _rankings(record)
    dialogue = "".join(_turn(message) for message in record.messages)
    for ranking in rankings:
        for better, worse in itertools.combinations(zip(ranking.answers, ranking.ranks, strict=True), 2):
            if better[1] < worse[1]:
                chosen, rejected = (dialogue + _turn(record.answers[place]) for place, _ in (better, worse))
                yield {"chosen": chosen, "rejected": rejected}


def _ultrafeedback(record: dataset_pb2.ExportedRecord) -> Iterator[dict[str, Any]]:
    """A line for each ranking; the score goes down by one with each rank."""
    rankings = _rankings(record)
    if len(record.messages) != 1 or record.messages[0].role != event_pb2.ROLE_USER:
        raise InvalidInput("ultrafeedback has one instruction, and no conversation")
    for ranking in rankings:
        places = sorted(zip(ranking.answers, ranking.ranks, strict=True))
        completions = [
            {"response": _plain(record.answers[place]), "overall_score": float(max(ranking.ranks) + 1 - rank)}
            for place, rank in places
        ]
        yield {"instruction": _plain(record.messages[0]), "completions": completions}


def _openai_stored(record: dataset_pb2.ExportedRecord) -> Iterator[dict[str, Any]]:
    """A stored chat completion with its messages; of feedback it has no place."""
    reasons = [FINISH_REASONS.of[reason] for reason in record.finish_reasons]
    yield _filled(
        id=record.import_id,
        object="chat.completion",
        created=record.created_unix_ms // 1000,
        model=record.persona,
        metadata=dict(sorted(record.metadata.items())),
        messages=[_message(message) for message in record.messages],
        choices=[
            {"index": index, "message": {"role": "assistant", **_answer(answer)}, "finish_reason": reason}
            for index, (answer, reason) in enumerate(zip(record.answers, reasons, strict=True))
        ],
    )


FORMATS: dict[str, Callable[[dataset_pb2.ExportedRecord], Iterator[Mapping[str, Any]]]] = {
    "attune": _attune,
    "hh": _hh,
    "ultrafeedback": _ultrafeedback,
    "openai-stored": _openai_stored,
}


def _rankings(record: dataset_pb2.ExportedRecord) -> list[dataset_pb2.ExportedFeedback]:
    rankings = [one for one in record.feedback if one.WhichOneof("signal") == "ranking"]
    if not rankings:
        raise InvalidInput("there is no ranking of its answers")
    return rankings


def _turn(message: event_pb2.Message) -> str:
    """A turn of a dialogue that is read back as it is."""
    text = _plain(message)
    if message.role not in _SIDES:
        raise InvalidInput("hh has turns of Human and Assistant alone")
    if not text.strip() or any(marker in text for marker in _MARKERS):
        raise InvalidInput("a message would not be read back as it is: it is empty, or holds a turn's mark")
    return f"\n\n{_SIDES[message.role]}: {text}"


def _plain(message: event_pb2.Message) -> str:
    if message.tool_calls or message.tool_call_id:
        raise InvalidInput("the format has no place for tool calls")
    return message.content


def _message(message: event_pb2.Message) -> dict[str, Any]:
    return {"role": ROLES.of[message.role], **_answer(message), **_filled(tool_call_id=message.tool_call_id)}


def _answer(message: event_pb2.Message) -> dict[str, Any]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
        for call in message.tool_calls
    ]
    return {"content": message.content, **_filled(tool_calls=calls, reasoning_content=message.reasoning)}


def _json(tool: event_pb2.Tool) -> Any:
    return json.loads(tool.parameters_json) if tool.parameters_json else None


def _feedback(said: dataset_pb2.ExportedFeedback) -> dict[str, Any]:
    return {
        "answers": list(said.answers),
        **_signal(said),
        **_filled(
            end_user_id=said.end_user,
            author=AUTHORS.of[said.author],
            comment=said.comment,
            tags=list(said.tags),
            guideline_version=said.guideline_version,
            propensity=said.propensity if said.HasField("propensity") else None,
            created_unix_ms=said.created_unix_ms,
        ),
    }


def _signal(said: dataset_pb2.ExportedFeedback) -> dict[str, Any]:
    """Written as in a feedback request over HTTP; comment and tags alone are no signal."""
    kind = str(said.WhichOneof("signal"))
    return {_NAMES.get(kind, kind): _SIGNALS[kind](said)} if kind in _SIGNALS else {}


def _annotation(said: dataset_pb2.ExportedFeedback) -> dict[str, Any]:
    annotation = said.annotation
    return {"start": annotation.start, "end": annotation.end, **_filled(tag=annotation.tag, note=annotation.note)}


def _outcome(said: dataset_pb2.ExportedFeedback) -> dict[str, Any]:
    value = said.outcome.WhichOneof("value")
    return {"name": said.outcome.name, "value": getattr(said.outcome, value) if value else None}


_NAMES = {"ranking": "ranks"}
_SIGNALS: dict[str, Callable[[dataset_pb2.ExportedFeedback], Any]] = {
    "thumb": lambda said: THUMBS.of[said.thumb],
    "rating": lambda said: said.rating,
    "ranking": lambda said: list(said.ranks),
    "correction": lambda said: said.correction.text,
    "annotation": _annotation,
    "outcome": _outcome,
    "implicit": lambda said: IMPLICIT_SIGNALS.of[said.implicit],
}


def _filled(**fields: Any) -> dict[str, Any]:
    """Without what says nothing."""
    return {name: value for name, value in fields.items() if value not in (None, "", [], {})}
