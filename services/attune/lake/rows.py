"""The one conversion from events to rows of the lake's tables, a batch at a time.

ptars makes Arrow of protobuf's bytes in one call; a row's columns are expressions over that, and so is what makes a
record poisonous. Nothing is done record by record, but the search for those that cannot be read in a batch that fails.
What protobuf's own library refuses ptars refuses too, but for a list of floats whose bytes end within one: it is read
as far as it goes, and has another length than the tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ptars import HandlerPool

from attune.chat.words import AUTHORS, FINISH_REASONS, ROLES, SOURCES, THUMBS, Words
from attune.lake.tables import FEEDBACK, RESPONSES, SCHEMAS, Position
from attune.v1 import event_pb2

SCHEMA_VERSION = 1
"""The newest version of event.proto that these tables know; a later one is set aside, not guessed at."""

_LATEST_UNIX_MS = 253_402_300_800_000  # the year 10000
_LARGEST_INT64 = (1 << 63) - 1
_BEST_RATING = 5

_AUTHORS = {event_pb2.AUTHOR_UNSPECIFIED: "end_user", **AUTHORS.of}
_CHOICES = {event_pb2.ToolChoice.MODE_UNSPECIFIED: "auto", **Words(event_pb2.ToolChoice.Mode).of}
_FORMATS = {event_pb2.ResponseFormat.KIND_UNSPECIFIED: "text", **Words(event_pb2.ResponseFormat.Kind).of}
_SIGNALS = [field.name for field in event_pb2.FeedbackEvent.DESCRIPTOR.oneofs_by_name["signal"].fields]
# Of an exchange that may not be stored.
_PRIVATE = (
    *("client_request_id", "end_user", "metadata", "messages", "prompt_token_ids", "output_token_ids"),
    *("output_logprobs", "stop", "text", "tools", "tool_calls", "reasoning"),
)


class PoisonousRecord(Exception):
    """A record that no row can be made of; the message says why, without quoting it."""


@dataclass(frozen=True)
class Rows:
    """Of a batch of records the rows, in their order, and of those that are poisonous the reasons by their places."""

    table: pa.Table
    poison: Mapping[int, str]


def rows_of(name: str, payloads: Sequence[bytes], log_id: str, partition: int, offsets: Sequence[int]) -> Rows:
    """Rows of `responses` or `feedback`. Where storing was denied, nothing of the exchange is kept but that it took
    place."""
    events, readable = _decode(name, payloads)
    poison = _Poison(events.num_rows)
    columns = _COLUMNS[name](events, poison)
    columns |= {
        "log_id": pa.repeat(pa.scalar(log_id, pa.string()), events.num_rows),
        "log_partition": pa.repeat(pa.scalar(partition, pa.int64()), events.num_rows),
        "log_offset": pa.array(offsets, pa.int64()).take(pa.array(readable, pa.int64())),
        "masked": pa.nulls(events.num_rows),
    }
    schema = SCHEMAS[name]
    table = pa.Table.from_arrays([columns[field.name].cast(field.type) for field in schema], schema=schema)
    reasons = dict.fromkeys(set(range(len(payloads))) - set(readable), f"not a {_MESSAGES[name].name}")
    reasons |= {readable[place]: reason for place, reason in poison.reasons.items()}
    if poison.reasons:
        table = table.take(pa.array([n for n in range(events.num_rows) if n not in poison.reasons], pa.int64()))
    return Rows(table, reasons)


def row_of(name: str, payload: bytes, at: Position) -> dict[str, Any]:
    """The row of one record; raises PoisonousRecord."""
    rows = rows_of(name, [payload], at.log_id, at.partition, [at.offset])
    if rows.poison:
        raise PoisonousRecord(rows.poison[0])
    row: dict[str, Any] = rows.table.to_pylist()[0]
    return row


_MESSAGES = {RESPONSES: event_pb2.ResponseEvent.DESCRIPTOR, FEEDBACK: event_pb2.FeedbackEvent.DESCRIPTOR}


@cache
def _decoder(name: str) -> Callable[[list[bytes]], pa.RecordBatch]:
    decode: Callable[[list[bytes]], pa.RecordBatch] = (
        HandlerPool([event_pb2.DESCRIPTOR]).get_for_message(_MESSAGES[name]).list_to_record_batch
    )
    return decode


def _decode(name: str, payloads: Sequence[bytes]) -> tuple[pa.RecordBatch, list[int]]:
    """The messages, and at which places those stood that are some."""
    decode = _decoder(name)
    try:
        return decode(list(payloads)), list(range(len(payloads)))
    except ValueError:
        readable = [place for place, payload in enumerate(payloads) if _can_be_read(decode, payload)]
    return decode([payloads[place] for place in readable]), readable


def _can_be_read(decode: Callable[[list[bytes]], pa.RecordBatch], payload: bytes) -> bool:
    try:
        decode([payload])
    except ValueError:
        return False
    return True


class _Poison:
    """What is wrong, by row: of several things the one that is looked for first."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.reasons: dict[int, str] = {}

    def where(self, wrong: pa.Array, reason: Callable[[int], str]) -> None:
        """Where this holds; what is null does not."""
        for place in pc.indices_nonzero(wrong.fill_null(False)).to_pylist():
            self.reasons.setdefault(place, reason(place))

    def missing(self, field: str, values: pa.Array, where: pa.Array | None = None) -> None:
        empty = pc.equal(values, "")
        self.where(empty if where is None else pc.and_(empty, where), lambda _place: f"{field} is missing")

    def names(self, field: str, names: Mapping[Any, str], numbers: pa.Array) -> pa.Array:
        """The names of an enum's numbers, null where it is null."""
        found = _names(names, numbers)
        unknown = pc.and_(pc.is_null(found), pc.is_valid(numbers))
        self.where(unknown, lambda place: f"{field} is {numbers[place]}; this version does not know it")
        return found


def _names(names: Mapping[Any, str], numbers: pa.Array) -> pa.Array:
    return pa.array(names.values(), pa.string()).take(pc.index_in(numbers, pa.array(list(names), pa.int32())))


def _header(events: pa.RecordBatch, poison: _Poison) -> dict[str, pa.Array]:
    header = {name: _part(events["header"], name) for name in ("event_id", "tenant")}
    numbers = {name: _part(events["header"], name).fill_null(0) for name in ("schema_version", "created_unix_ms")}
    version, created = numbers["schema_version"], numbers["created_unix_ms"]
    poison.where(
        pc.not_equal(version, SCHEMA_VERSION),
        lambda place: f"schema_version is {version[place]}; this version knows {SCHEMA_VERSION}",
    )
    for name, values in header.items():
        poison.missing(f"header.{name}", values.fill_null(""))
    poison.where(
        pc.or_(pc.less_equal(created, 0), pc.greater_equal(created, _LATEST_UNIX_MS)),
        lambda place: f"header.created_unix_ms is {created[place]}; that is no time",
    )
    return header | numbers


def _part(struct: pa.Array, name: str) -> pa.Array:
    """A field of a message within, null where the message is."""
    return pc.struct_field(struct, name)


def _response_columns(events: pa.RecordBatch, poison: _Poison) -> dict[str, pa.Array]:
    columns = dict(zip(events.schema.names, events.columns, strict=True))
    columns |= _header(events, poison)
    for name in ("response_id", "persona"):
        poison.missing(name, events[name])
    poison.missing("policy_id", events["policy_id"], pc.equal(events["source"], event_pb2.SOURCE_SERVED))
    _check_logprobs(events, poison)
    sampling, timings = events["sampling"], events["timings"]
    columns |= {field.name: _part(sampling, field.name) for field in sampling.type}
    poison.where(
        pc.greater(columns["seed"], pa.scalar(_LARGEST_INT64, pa.uint64())),
        lambda place: f"sampling.seed is {columns['seed'][place]}; it may be at most 2^63-1",
    )
    columns["seed"] = columns["seed"].cast(pa.int64(), safe=False)
    columns["stop"] = _filled(columns["stop"])
    columns |= {field.name: _part(timings, field.name) for field in timings.type}
    columns |= {name: columns[name].fill_null(0) for name in ("received_unix_ms", "total_ms")}
    columns |= {f"consent_{field.name}": _part(events["consent"], field.name) for field in events["consent"].type}
    columns["source"] = poison.names("source", SOURCES.of, events["source"])
    columns["messages"] = _messages(events["messages"], poison)
    columns["finish_reason"] = poison.names("finish_reason", FINISH_REASONS.of, events["finish_reason"])
    mode, kind = _part(events["tool_choice"], "mode"), _part(events["response_format"], "kind")
    columns["tool_choice"] = poison.names("tool_choice.mode", _CHOICES, mode.fill_null(0))
    columns["response_format"] = poison.names("response_format.kind", _FORMATS, kind.fill_null(0))
    columns["metadata"] = _by_key(events["metadata"], poison)
    denied = pc.equal(columns["consent_store"], False).fill_null(False)
    if denied.true_count:
        schema = SCHEMAS[RESPONSES]
        columns |= {name: _emptied(columns[name].cast(schema.field(name).type), denied) for name in _PRIVATE}
    return columns


def _check_logprobs(events: pa.RecordBatch, poison: _Poison) -> None:
    tokens = pc.list_value_length(events["output_token_ids"])
    logprobs = pc.list_value_length(events["output_logprobs"])
    poison.where(
        pc.and_(pc.not_equal(logprobs, 0), pc.not_equal(logprobs, tokens)),
        lambda place: f"{logprobs[place]} output_logprobs for {tokens[place]} output_token_ids",
    )


def _messages(messages: pa.ListArray, poison: _Poison) -> pa.ListArray:
    """With the roles by name."""
    numbers = _part(messages.values, "role")
    roles = _names(ROLES.of, numbers)
    for number in pc.indices_nonzero(pc.is_null(roles)).to_pylist():
        place = pc.list_parent_indices(messages)[number].as_py()
        poison.reasons.setdefault(place, f"role is {numbers[number]}; this version does not know it")
    parts = [
        roles if field.name == "role" else _part(messages.values, field.name) for field in messages.type.value_type
    ]
    named = pa.StructArray.from_arrays(parts, [field.name for field in messages.type.value_type])
    return pa.ListArray.from_arrays(messages.offsets, named)


def _by_key(entries: pa.MapArray, poison: _Poison) -> pa.MapArray:
    """In the order of their keys: on the wire a map's entries have none."""
    lengths = np.diff(entries.offsets.to_numpy())
    owners = pa.array(np.repeat(np.arange(len(entries)), lengths))
    order = pc.sort_indices(
        pa.table({"owner": owners, "key": entries.keys}), [("owner", "ascending"), ("key", "ascending")]
    )
    keys = entries.keys.take(order)
    again = pc.and_(pc.equal(keys[1:], keys[:-1]), pc.equal(owners[1:], owners[:-1]))
    for number in pc.indices_nonzero(again).to_pylist():
        poison.reasons.setdefault(owners[number].as_py(), "metadata has a key twice")
    return pa.MapArray.from_arrays(entries.offsets, keys, entries.items.take(order))


def _filled(lists: pa.ListArray) -> pa.Array:
    """Without nulls: an empty list is in their place."""
    return _emptied(lists, pc.is_null(lists)) if lists.null_count else lists


def _emptied(values: pa.Array, where: pa.Array) -> pa.Array:
    nothing: Any = "" if pa.types.is_string(values.type) else []
    empty = pa.array([nothing], values.type)
    places = pc.if_else(where, len(values), pa.array(range(len(values)), pa.int64()))
    return pa.concat_arrays([values, empty]).take(places)


def _feedback_columns(events: pa.RecordBatch, poison: _Poison) -> dict[str, pa.Array]:
    columns = dict(zip(events.schema.names, events.columns, strict=True))
    columns |= _header(events, poison)
    columns["kind"] = _kind(events, poison)
    poison.where(
        pc.and_(pc.equal(events["response_id"], ""), pc.equal(events["conversation_id"], "")),
        lambda _place: "response_id and conversation_id are missing",
    )
    columns["author"] = poison.names("author", _AUTHORS, events["author"])
    # Of what is taken back the value does not count and may be missing.
    nothing = pc.and_(events["retracted"], pc.equal(events["thumb"], event_pb2.THUMB_UNSPECIFIED))
    columns["thumb"] = poison.names("thumb", THUMBS.of, _without(events["thumb"], nothing))
    rating = columns["rating"] = _without(events["rating"], events["retracted"])
    poison.where(
        pc.or_(pc.less(rating, 1), pc.greater(rating, _BEST_RATING)),
        lambda place: f"rating is {rating[place]}; it must be 1 to {_BEST_RATING}",
    )
    columns["ranking"] = _part(events["ranking"], "entries")
    columns["correction"] = _part(events["correction"], "text")
    columns["outcome_flag"], columns["outcome_number"] = (_part(events["outcome"], name) for name in ("flag", "number"))
    poison.where(
        pc.and_(pc.is_valid(columns["outcome_flag"]), pc.is_valid(columns["outcome_number"])),
        lambda _place: "outcome.flag and outcome.number are both there",
    )
    return columns


def _kind(events: pa.RecordBatch, poison: _Poison) -> pa.Array:
    """The name of the signal that is there."""
    there = [pc.is_valid(events[name]) for name in _SIGNALS]
    count = reduce(pc.add, (signal.cast(pa.int8()) for signal in there))
    poison.where(pc.equal(count, 0), lambda _place: "signal is missing")
    poison.where(pc.greater(count, 1), lambda _place: "more than one signal is there")
    return pc.case_when(pa.StructArray.from_arrays(there, _SIGNALS), *_SIGNALS)


def _without(values: pa.Array, where: pa.Array) -> pa.Array:
    return pc.if_else(where.fill_null(False), pa.scalar(None, values.type), values)


_COLUMNS: dict[str, Callable[[pa.RecordBatch, _Poison], dict[str, pa.Array]]] = {
    RESPONSES: _response_columns,
    FEEDBACK: _feedback_columns,
}
