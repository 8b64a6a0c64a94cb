"""The lake's tables, and the one conversion from events to their rows.

Every row knows where in which event log it stood. Delta has no unsigned integers: token ids are int64 here.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from google.protobuf.message import DecodeError, Message

from attune.v1 import event_pb2

RESPONSES = "responses"
FEEDBACK = "feedback"
DEAD_LETTER = "dead-letter"

SCHEMA_VERSION = 1
"""The newest version of event.proto that these tables know; a later one is set aside, not guessed at."""

_LATEST_UNIX_MS = 253_402_300_800_000  # the year 10000
_INT64 = 1 << 63
# Of these columns a row of feedback has those of its kind.
_SIGNAL = ("thumb", "rating", "ranking", "correction", "annotation", "outcome_flag", "outcome_number")
_DEAD_PAYLOAD_BYTES = 1 << 20

_ROLES = {
    event_pb2.ROLE_SYSTEM: "system",
    event_pb2.ROLE_USER: "user",
    event_pb2.ROLE_ASSISTANT: "assistant",
    event_pb2.ROLE_TOOL: "tool",
}
_SOURCES = {
    event_pb2.SOURCE_SERVED: "served",
    event_pb2.SOURCE_IMPORTED: "imported",
    event_pb2.SOURCE_TEACHER: "teacher",
}
_FINISH_REASONS = {
    event_pb2.FINISH_REASON_STOP: "stop",
    event_pb2.FINISH_REASON_LENGTH: "length",
    event_pb2.FINISH_REASON_ABORTED: "aborted",
    event_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}
_THUMBS = {event_pb2.THUMB_UP: "up", event_pb2.THUMB_DOWN: "down"}
_AUTHORS = {
    event_pb2.AUTHOR_UNSPECIFIED: "end_user",
    event_pb2.AUTHOR_END_USER: "end_user",
    event_pb2.AUTHOR_REVIEWER: "reviewer",
    event_pb2.AUTHOR_APPLICATION: "application",
}
_CHOICES = {
    event_pb2.ToolChoice.MODE_UNSPECIFIED: "auto",
    event_pb2.ToolChoice.MODE_AUTO: "auto",
    event_pb2.ToolChoice.MODE_NONE: "none",
    event_pb2.ToolChoice.MODE_REQUIRED: "required",
    event_pb2.ToolChoice.MODE_NAMED: "named",
}
_FORMATS = {
    event_pb2.ResponseFormat.KIND_UNSPECIFIED: "text",
    event_pb2.ResponseFormat.KIND_TEXT: "text",
    event_pb2.ResponseFormat.KIND_JSON_OBJECT: "json_object",
    event_pb2.ResponseFormat.KIND_JSON_SCHEMA: "json_schema",
}

_TOOL_CALLS = pa.list_(pa.struct([("id", pa.string()), ("name", pa.string()), ("arguments_json", pa.string())]))
_TOOLS = pa.list_(pa.struct([("name", pa.string()), ("description", pa.string()), ("parameters_json", pa.string())]))
MESSAGES = pa.list_(
    pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("tool_calls", _TOOL_CALLS),
            ("tool_call_id", pa.string()),
            ("reasoning", pa.string()),
        ]
    )
)

# How many pieces of personal data of each kind were masked; absent where nobody looked.
_MASKED = ("masked", pa.map_(pa.string(), pa.int64()))

_POSITION = [("log_id", pa.string()), ("log_partition", pa.int64()), ("log_offset", pa.int64())]

_HEADER = [
    ("event_id", pa.string()),
    ("schema_version", pa.int64()),
    ("tenant", pa.string()),
    ("created_unix_ms", pa.int64()),
]

_OF_THE_SENDING = {"log_id", "log_partition", "log_offset", "created_unix_ms", "received_unix_ms"}

SCHEMAS: dict[str, pa.Schema] = {
    RESPONSES: pa.schema(
        [
            *_POSITION,
            *_HEADER,
            ("response_id", pa.string()),
            ("persona", pa.string()),
            ("persona_version", pa.string()),
            ("policy_id", pa.string()),
            ("request_group", pa.string()),
            ("alternative", pa.int64()),
            ("conversation_id", pa.string()),
            ("turn", pa.int64()),
            ("client_request_id", pa.string()),
            ("end_user", pa.string()),
            ("source", pa.string()),
            ("consent_store", pa.bool_()),
            ("consent_train", pa.bool_()),
            ("metadata", pa.map_(pa.string(), pa.string())),
            ("messages", MESSAGES),
            ("prompt_token_ids", pa.list_(pa.int64())),
            ("output_token_ids", pa.list_(pa.int64())),
            ("output_logprobs", pa.list_(pa.float32())),
            ("logprobs_mode", pa.string()),
            ("greedy", pa.bool_()),
            ("grammar_masked", pa.bool_()),
            ("temperature", pa.float64()),
            ("top_p", pa.float64()),
            ("top_k", pa.int64()),
            ("presence_penalty", pa.float64()),
            ("frequency_penalty", pa.float64()),
            ("max_tokens", pa.int64()),
            ("seed", pa.int64()),
            ("stop", pa.list_(pa.string())),
            ("finish_reason", pa.string()),
            ("text", pa.string()),
            ("received_unix_ms", pa.int64()),
            ("first_token_ms", pa.float64()),
            ("total_ms", pa.float64()),
            ("base_model_hash", pa.string()),
            ("tokenizer_hash", pa.string()),
            ("chat_template_hash", pa.string()),
            ("tools", _TOOLS),
            ("tool_choice", pa.string()),
            ("response_format", pa.string()),
            ("tool_calls", _TOOL_CALLS),
            ("reasoning", pa.string()),
            _MASKED,
        ]
    ),
    FEEDBACK: pa.schema(
        [
            *_POSITION,
            *_HEADER,
            ("response_id", pa.string()),
            ("persona", pa.string()),
            ("conversation_id", pa.string()),
            ("end_user", pa.string()),
            ("revision", pa.int64()),
            ("retracted", pa.bool_()),
            ("comment", pa.string()),
            ("kind", pa.string()),
            ("thumb", pa.string()),
            # What tells apart several signals of one kind; see event.proto.
            ("name", pa.string()),
            ("author", pa.string()),
            ("tags", pa.list_(pa.string())),
            ("guideline_version", pa.string()),
            ("propensity", pa.float64()),  # absent: it was not asked for
            ("client_feedback_id", pa.string()),
            ("rating", pa.int64()),
            ("ranking", pa.list_(pa.struct([("response_id", pa.string()), ("rank", pa.int64())]))),
            ("correction", pa.string()),
            (
                "annotation",
                pa.struct([("start", pa.int64()), ("end", pa.int64()), ("tag", pa.string()), ("note", pa.string())]),
            ),
            ("outcome_flag", pa.bool_()),
            ("outcome_number", pa.float64()),
            _MASKED,
        ]
    ),
    DEAD_LETTER: pa.schema(
        [
            *_POSITION,
            ("topic", pa.string()),
            ("reason", pa.string()),
            ("key", pa.binary()),
            ("payload", pa.binary()),  # at most the first MiB
            ("payload_bytes", pa.int64()),
            ("payload_sha256", pa.string()),
        ]
    ),
}


@dataclass(frozen=True)
class Position:
    """Where a record stood."""

    log_id: str
    partition: int
    offset: int


class PoisonousRecord(Exception):
    """A record that no row can be made of; the message says why, without quoting it."""


def response_row(payload: bytes, at: Position) -> dict[str, Any]:
    """One row of `responses`. Where storing was denied, nothing of the exchange is kept but that it took place.

    Raises PoisonousRecord.
    """
    event = event_pb2.ResponseEvent()
    _parse(event, payload)
    _need(event, "response_id", "persona")
    if event.source == event_pb2.SOURCE_SERVED:
        _need(event, "policy_id")
    if len(event.output_logprobs) not in (0, len(event.output_token_ids)):
        raise PoisonousRecord(
            f"{len(event.output_logprobs)} output_logprobs for {len(event.output_token_ids)} output_token_ids"
        )
    consent, sampling, timings = event.consent, event.sampling, event.timings
    if sampling.seed >= _INT64:
        raise PoisonousRecord(f"sampling.seed is {sampling.seed}; it may be at most 2^63-1")
    row = {
        **_position(at),
        **_header(event.header),
        "response_id": event.response_id,
        "persona": event.persona,
        "persona_version": event.persona_version,
        "policy_id": event.policy_id,
        "request_group": event.request_group,
        "alternative": event.alternative,
        "conversation_id": event.conversation_id,
        "turn": event.turn,
        "client_request_id": event.client_request_id,
        "end_user": event.end_user,
        "source": _name(_SOURCES, event.source, "source"),
        "consent_store": _optional(consent, "store"),
        "consent_train": _optional(consent, "train"),
        "metadata": sorted(event.metadata.items()),
        "messages": [
            {
                "role": _name(_ROLES, message.role, "role"),
                "content": message.content,
                "tool_calls": _calls(message.tool_calls),
                "tool_call_id": message.tool_call_id,
                "reasoning": message.reasoning,
            }
            for message in event.messages
        ],
        "prompt_token_ids": list(event.prompt_token_ids),
        "output_token_ids": list(event.output_token_ids),
        "output_logprobs": list(event.output_logprobs),
        "logprobs_mode": event.logprobs_mode,
        "greedy": event.greedy,
        "grammar_masked": event.grammar_masked,
        "temperature": _optional(sampling, "temperature"),
        "top_p": _optional(sampling, "top_p"),
        "top_k": _optional(sampling, "top_k"),
        "presence_penalty": _optional(sampling, "presence_penalty"),
        "frequency_penalty": _optional(sampling, "frequency_penalty"),
        "max_tokens": _optional(sampling, "max_tokens"),
        "seed": _optional(sampling, "seed"),
        "stop": list(sampling.stop),
        "finish_reason": _name(_FINISH_REASONS, event.finish_reason, "finish_reason"),
        "text": event.text,
        "received_unix_ms": timings.received_unix_ms,
        "first_token_ms": _optional(timings, "first_token_ms"),
        "total_ms": timings.total_ms,
        "base_model_hash": event.base_model_hash,
        "tokenizer_hash": event.tokenizer_hash,
        "chat_template_hash": event.chat_template_hash,
        "tools": [
            {"name": tool.name, "description": tool.description, "parameters_json": tool.parameters_json}
            for tool in event.tools
        ],
        "tool_choice": _name(_CHOICES, event.tool_choice.mode, "tool_choice.mode"),
        "response_format": _name(_FORMATS, event.response_format.kind, "response_format.kind"),
        "tool_calls": _calls(event.tool_calls),
        "reasoning": event.reasoning,
        "masked": None,
    }
    if row["consent_store"] is False:
        row |= {
            "client_request_id": "",
            "end_user": "",
            "metadata": [],
            "messages": [],
            "prompt_token_ids": [],
            "output_token_ids": [],
            "output_logprobs": [],
            "stop": [],
            "text": "",
            "tools": [],
            "tool_calls": [],
            "reasoning": "",
        }
    return row


def feedback_row(payload: bytes, at: Position) -> dict[str, Any]:
    """One row of `feedback`. Raises PoisonousRecord."""
    event = event_pb2.FeedbackEvent()
    _parse(event, payload)
    kind = event.WhichOneof("signal")
    if kind is None:
        raise PoisonousRecord("signal is missing")
    if not event.response_id and not event.conversation_id:
        raise PoisonousRecord("response_id and conversation_id are missing")
    return {
        **_position(at),
        **_header(event.header),
        "response_id": event.response_id,
        "persona": event.persona,
        "conversation_id": event.conversation_id,
        "end_user": event.end_user,
        "revision": event.revision,
        "retracted": event.retracted,
        "comment": event.comment,
        "kind": kind,
        "name": event.name,
        "author": _name(_AUTHORS, event.author, "author"),
        "tags": list(event.tags),
        "guideline_version": event.guideline_version,
        "propensity": _optional(event, "propensity"),
        "client_feedback_id": event.client_feedback_id,
        **dict.fromkeys(_SIGNAL),
        **_signal(event, kind),
        "masked": None,
    }


def _signal(event: event_pb2.FeedbackEvent, kind: str) -> dict[str, Any]:
    """The columns of one kind of signal; of what is taken back the value does not count and may be missing."""
    columns: dict[str, Any] = {}
    match kind:
        case "thumb":
            if not (event.retracted and event.thumb == event_pb2.THUMB_UNSPECIFIED):
                columns["thumb"] = _name(_THUMBS, event.thumb, "thumb")
        case "rating":
            if not event.retracted:
                if not 1 <= event.rating <= 5:
                    raise PoisonousRecord(f"rating is {event.rating}; it must be 1 to 5")
                columns["rating"] = event.rating
        case "ranking":
            columns["ranking"] = [
                {"response_id": entry.response_id, "rank": entry.rank} for entry in event.ranking.entries
            ]
        case "correction":
            columns["correction"] = event.correction.text
        case "annotation":
            fields = ("start", "end", "tag", "note")
            columns["annotation"] = {name: getattr(event.annotation, name) for name in fields}
        case "outcome":
            if value := event.outcome.WhichOneof("value"):
                columns[f"outcome_{value}"] = getattr(event.outcome, value)
    return columns


def _calls(calls: Iterable[event_pb2.ToolCall]) -> list[dict[str, str]]:
    return [{"id": call.id, "name": call.name, "arguments_json": call.arguments_json} for call in calls]


def dead_letter_row(topic: str, key: bytes, payload: bytes, reason: str, at: Position) -> dict[str, Any]:
    """One row of `dead-letter`."""
    return {
        **_position(at),
        "topic": topic,
        "reason": reason,
        "key": key[:_DEAD_PAYLOAD_BYTES],
        "payload": payload[:_DEAD_PAYLOAD_BYTES],
        "payload_bytes": len(payload),
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
    }


def say_the_same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two rows as Arrow gives them are of one event: wherever it stood, and whenever it was sent again."""
    return repr(_said(first)) == repr(_said(second))  # as text, where one "not a number" is like another


def _said(row: dict[str, Any]) -> list[Any]:
    """Empty is like absent: an older version's rows have nothing in columns that came later."""
    return [None if value in ("", []) else value for name, value in sorted(row.items()) if name not in _OF_THE_SENDING]


def to_arrow(table: str, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMAS[table])


def _parse(event: event_pb2.ResponseEvent | event_pb2.FeedbackEvent, payload: bytes) -> None:
    try:
        event.ParseFromString(payload)
    except DecodeError:
        raise PoisonousRecord(f"not a {event.DESCRIPTOR.name}") from None
    header = event.header
    if header.schema_version != SCHEMA_VERSION:
        raise PoisonousRecord(f"schema_version is {header.schema_version}; this version knows {SCHEMA_VERSION}")
    for field in ("event_id", "tenant"):
        if not getattr(header, field):
            raise PoisonousRecord(f"header.{field} is missing")
    if not 0 < header.created_unix_ms < _LATEST_UNIX_MS:
        raise PoisonousRecord(f"header.created_unix_ms is {header.created_unix_ms}; that is no time")


def _need(event: Message, *fields: str) -> None:
    for field in fields:
        if not getattr(event, field):
            raise PoisonousRecord(f"{field} is missing")


def _name(names: dict[Any, str], value: int, field: str) -> str:
    if value not in names:
        raise PoisonousRecord(f"{field} is {value}; this version does not know it")
    return names[value]


def _optional(message: Message, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def _position(at: Position) -> dict[str, Any]:
    return {"log_id": at.log_id, "log_partition": at.partition, "log_offset": at.offset}


def _header(header: event_pb2.EventHeader) -> dict[str, Any]:
    return {
        "event_id": header.event_id,
        "schema_version": header.schema_version,
        "tenant": header.tenant,
        "created_unix_ms": header.created_unix_ms,
    }
