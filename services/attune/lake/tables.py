"""The lake's tables, and the one conversion from events to their rows.

Every row knows where in which event log it stood. Delta has no unsigned integers: token ids are int64 here.
"""

import hashlib
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
}
_THUMBS = {event_pb2.THUMB_UP: "up", event_pb2.THUMB_DOWN: "down"}

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

_POSITION = [("log_id", pa.string()), ("log_partition", pa.int64()), ("log_offset", pa.int64())]

_HEADER = [
    ("event_id", pa.string()),
    ("schema_version", pa.int64()),
    ("tenant", pa.string()),
    ("created_unix_ms", pa.int64()),
]

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
            ("kind", pa.string()),  # absent: a retraction that names no kind
            ("thumb", pa.string()),
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
    _need(event, "response_id", "persona", "policy_id")
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
            {"role": _name(_ROLES, message.role, "role"), "content": message.content} for message in event.messages
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
        }
    return row


def feedback_row(payload: bytes, at: Position) -> dict[str, Any]:
    """One row of `feedback`. Raises PoisonousRecord."""
    event = event_pb2.FeedbackEvent()
    _parse(event, payload)
    _need(event, "response_id")
    kind = event.WhichOneof("signal")
    if kind is None and not event.retracted:
        raise PoisonousRecord("signal is missing")
    thumb = None
    if kind == "thumb" and not (event.retracted and event.thumb == event_pb2.THUMB_UNSPECIFIED):
        thumb = _name(_THUMBS, event.thumb, "thumb")
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
        "thumb": thumb,
    }


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
