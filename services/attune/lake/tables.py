"""The lake's tables.

Every row knows where in which event log it stood. Delta has no unsigned integers: token ids are int64 here.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

RESPONSES = "responses"
FEEDBACK = "feedback"
DEAD_LETTER = "dead-letter"

_DEAD_PAYLOAD_BYTES = 1 << 20

TOOL_CALLS = pa.list_(pa.struct([("id", pa.string()), ("name", pa.string()), ("arguments_json", pa.string())]))
TOOLS = pa.list_(pa.struct([("name", pa.string()), ("description", pa.string()), ("parameters_json", pa.string())]))
MESSAGES = pa.list_(
    pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("tool_calls", TOOL_CALLS),
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
            ("tools", TOOLS),
            ("tool_choice", pa.string()),
            ("response_format", pa.string()),
            ("tool_calls", TOOL_CALLS),
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


def dead_letter_row(topic: str, key: bytes, payload: bytes, reason: str, at: Position) -> dict[str, Any]:
    """One row of `dead-letter`."""
    return {
        "log_id": at.log_id,
        "log_partition": at.partition,
        "log_offset": at.offset,
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
