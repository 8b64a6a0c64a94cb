"""A lake of any size: conversations that never were, written as the aggregator writes."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from attune.lake.lake import Lake
from attune.lake.tables import FEEDBACK, RESPONSES, SCHEMAS

NOW_UNIX_MS = 1_790_000_000_000
TENANT, PERSONA = "default", "concierge"

_ROWS_A_COMMIT = 50_000
_ANSWERS_A_PROMPT = 5
_PEOPLE = 50_000
_PROMPT_TOKENS, _OUTPUT_TOKENS = 30, 40


def write_lake(folder: Path, responses: int, feedback: int) -> None:
    """Prompts have five answers on average. Of the feedback 85 % are thumbs, 5 % rankings of up to four answers, 10 %
    corrections; a tenth revises what was said before.
    """
    lake, rng = Lake(folder), np.random.default_rng(1)
    prompts = rng.integers(0, responses // _ANSWERS_A_PROMPT, responses)
    for first in range(0, responses, _ROWS_A_COMMIT):
        rows = _responses(first, prompts[first : first + _ROWS_A_COMMIT], rng)
        lake.responses.append(rows, f"log/0/{RESPONSES}", first, first + rows.num_rows)
    said, first = [], 0
    for row in _feedback(feedback, prompts, rng):
        said.append(row)
        if len(said) == _ROWS_A_COMMIT or first + len(said) == feedback:
            rows = pa.Table.from_pylist(said, schema=SCHEMAS[FEEDBACK])
            lake.feedback.append(rows, f"log/0/{FEEDBACK}", first, first + len(said))
            said, first = [], first + len(said)


def _response_id(number: int) -> str:
    return f"0193{number:08x}-7000-8000-9000-{number:012x}.{number * 2654435761 % 2**32:08x}"


def _responses(first: int, prompts: np.ndarray, rng: np.random.Generator) -> pa.Table:
    count = len(prompts)
    numbers = np.arange(first, first + count)
    ids = [_response_id(number) for number in numbers]
    asked = [
        f"Please call me a cab from station {prompt} to the harbour, {prompt % 24} o'clock sharp, and it must be cheap"
        for prompt in prompts
    ]
    text = [f"I cannot call a cab, but here is answer {number}: {'x' * 100}" for number in numbers]
    given: dict[str, Any] = {
        "log_id": ["log"] * count,
        "log_partition": np.zeros(count, int),
        "log_offset": numbers,
        "event_id": [f"0193{number:08x}-7abc-8000-9000-{number:012x}" for number in numbers],
        "schema_version": np.ones(count, int),
        "tenant": [TENANT] * count,
        "created_unix_ms": NOW_UNIX_MS + numbers,
        "response_id": ids,
        "persona": [PERSONA] * count,
        "persona_version": ["a" * 32] * count,
        "policy_id": ["p-000001"] * count,
        "request_group": ids,
        "alternative": np.zeros(count, int),
        "conversation_id": [f"c-{number:032x}" for number in numbers],
        "turn": np.ones(count, int),
        "client_request_id": [f"q-{number:032x}" for number in numbers],
        "end_user": [f"{person:032x}" for person in rng.integers(0, _PEOPLE, count)],
        "source": ["served"] * count,
        "messages": _messages(asked),
        "prompt_token_ids": _lists((prompts[:, None] * 31 + np.arange(_PROMPT_TOKENS)) % 50_000, pa.int64()),
        "output_token_ids": _lists(rng.integers(0, 50_000, (count, _OUTPUT_TOKENS)), pa.int64()),
        "output_logprobs": _lists(-rng.random((count, _OUTPUT_TOKENS), np.float32), pa.float32()),
        "logprobs_mode": ["processed_logprobs"] * count,
        "finish_reason": ["stop"] * count,
        "text": text,
        "base_model_hash": ["b" * 64] * count,
        "tokenizer_hash": ["t" * 64] * count,
        "chat_template_hash": ["c" * 64] * count,
        "reasoning": [""] * count,
    }
    schema = SCHEMAS[RESPONSES]
    return pa.Table.from_arrays([_column(given.get(field.name), field.type, count) for field in schema], schema=schema)


def _column(values: Any, kind: pa.DataType, count: int) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if values is not None:
        return pa.array(values, kind)
    return _empty(kind, count) if pa.types.is_list(kind) else pa.nulls(count, kind)


def _empty(kind: pa.DataType, count: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.zeros(count + 1), pa.int32()), pa.array([], kind.value_type))


def _lists(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    rows, width = values.shape
    return pa.ListArray.from_arrays(
        pa.array(np.arange(0, rows * width + 1, width), pa.int32()), pa.array(values.ravel(), kind)
    )


def _messages(asked: list[str]) -> pa.Array:
    count = len(asked)
    message = SCHEMAS[RESPONSES].field("messages").type.value_type
    given = {"role": ["user"] * count, "content": asked, "tool_call_id": [""] * count, "reasoning": [""] * count}
    parts = [_column(given.get(field.name), field.type, count) for field in message]
    each = pa.StructArray.from_arrays(parts, fields=list(message))
    return pa.ListArray.from_arrays(pa.array(np.arange(count + 1), pa.int32()), each)


def _feedback(count: int, prompts: np.ndarray, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    in_order = np.argsort(prompts, kind="stable")
    begins = np.searchsorted(prompts[in_order], np.arange(prompts.max() + 2))
    about, kinds, likes = rng.integers(0, len(prompts), count), rng.random(count), rng.random(count) < 0.5
    people = rng.integers(0, _PEOPLE, count)
    before: dict[str, Any] = {}
    for number in range(count):
        event = {
            "log_offset": number,
            "event_id": f"0194{number:08x}-7abc-8000-9000-{number:012x}",
            "created_unix_ms": NOW_UNIX_MS + 100_000_000 + number,
        }
        if number % 10 == 9:
            row = {**before, **event, "revision": 1, "retracted": number % 100 == 99}
        else:
            one = int(about[number])
            fellows = in_order[begins[prompts[one]] : begins[prompts[one] + 1]][:4]
            row = {**_said(one, kinds[number], likes[number], rng.permutation(fellows)), **event}
            row["end_user"] = f"{people[number]:032x}"
        before = row
        yield row


def _said(about: int, kind: float, liked: bool, fellows: np.ndarray) -> dict[str, Any]:
    row: dict[str, Any] = {
        "log_id": "log",
        "log_partition": 0,
        "schema_version": 1,
        "tenant": TENANT,
        "response_id": _response_id(about),
        "persona": PERSONA,
        "conversation_id": f"c-{about:032x}",
        "revision": 0,
        "retracted": False,
        "comment": "",
        "kind": "thumb",
        "name": "",
        "author": "end_user",
        "tags": [],
        "guideline_version": "",
        "client_feedback_id": "",
    }
    if kind < 0.85 or (kind < 0.9 and len(fellows) < 2):
        return {**row, "thumb": "up" if liked else "down"}
    if kind < 0.9:
        ranks = [{"response_id": _response_id(int(one)), "rank": rank} for rank, one in enumerate(fellows, 1)]
        ids = sorted(entry["response_id"] for entry in ranks)
        digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:32]
        return {**row, "kind": "ranking", "name": digest, "response_id": ids[0], "ranking": ranks}
    return {**row, "kind": "correction", "correction": f"I cannot, but I can give you a number. {'y' * 100} {about}"}
