"""Masks personal data in rows before they come into the lake.

A piece that is found becomes its kind in brackets: `[mail]`. A response in which anything was found loses its token
ids and log-probabilities as well, for they spell the same words: no policy can learn from it by what was sampled.
Each row says how many pieces of each kind it had; the pieces themselves are neither kept nor logged. Ids that the
application chose (conversations, requests, users) are not looked at.
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from attune import metrics
from attune.aggregator.privacy import patterns
from attune.aggregator.privacy.patterns import Finder, Span, TooSlow
from attune.lake.tables import FEEDBACK, RESPONSES, SCHEMAS, to_arrow
from attune.settings import PrivacySettings

Row = dict[str, Any]

UNREAD = "unread"
"""The kind of a text that could not be looked through in time: all of it is masked."""

# A megabyte takes some tenths of a second.
_ROW_SECONDS = 1.0

# Where a table has texts; in JSON an escape may stand for any character.
_TEXTS = {
    RESPONSES: (
        *("metadata.value", "messages.content", "messages.reasoning", "tools.description"),
        *("stop", "text", "reasoning"),
    ),
    FEEDBACK: ("comment", "correction", "annotation.note"),
}
_JSON_TEXTS = {
    RESPONSES: ("messages.tool_calls.arguments_json", "tools.parameters_json", "tool_calls.arguments_json"),
    FEEDBACK: (),
}
_ESCAPE = r"\\"


@dataclass(frozen=True)
class Scrubber:
    """Finders by kind, in the order in which they look: what one has masked the next does not see.

    Once a row has taken `row_seconds` of this thread's time its texts are masked whole.
    """

    finders: Mapping[str, Finder]
    row_seconds: float = _ROW_SECONDS

    @classmethod
    def from_settings(cls, settings: PrivacySettings) -> "Scrubber | None":
        """None when nothing is to be masked."""
        if not settings.scrub:
            return None
        limit = settings.pattern_milliseconds / 1000
        own = {kind: patterns.own(pattern, limit) for kind, pattern in settings.patterns.items()}
        shipped: dict[str, Finder] = {
            "key": patterns.keys,
            "mail": patterns.mails,
            "iban": patterns.ibans,
            "card": patterns.cards,
            "ip": patterns.addresses,
            "phone": patterns.phones(settings.phone_regions),
        }
        return cls(own | {kind: shipped[kind] for kind in shipped if kind in settings.kinds})

    def rows(self, table: str, rows: pa.Table) -> pa.Table:
        """The rows masked, as `row` does it: the few that may have something, for most have nothing."""
        places = self._traces(table, rows)
        nothing = pa.repeat(pa.scalar([], SCHEMAS[table].field("masked").type), rows.num_rows)
        clear = rows.set_column(rows.schema.get_field_index("masked"), SCHEMAS[table].field("masked"), nothing)
        if not len(places):
            return clear
        masked = to_arrow(table, [self.row(table, row) for row in rows.take(places).to_pylist()])
        order = np.arange(rows.num_rows)
        order[places] = rows.num_rows + np.arange(len(places))
        return pa.concat_tables([clear, masked]).take(order)

    def _traces(self, table: str, rows: pa.Table) -> "np.ndarray[Any, Any]":
        """The places of the rows with a trace of something; of all with a text where an operator's pattern looks."""
        found = np.zeros(rows.num_rows, bool)
        if not self.finders:
            return np.flatnonzero(found)
        known = self.finders.keys() <= patterns.TRACES.keys()
        trace = "|".join(patterns.TRACES[kind] for kind in self.finders) if known else "(?s)."
        for paths, pattern in ((_TEXTS[table], trace), (_JSON_TEXTS[table], f"{trace}|{_ESCAPE}")):
            for path in paths:
                column = rows[path.partition(".")[0]].combine_chunks()
                texts, owners = _texts(column, path.split(".")[1:])
                places = pc.indices_nonzero(pc.match_substring_regex(texts, pattern)).to_numpy()
                found[places if owners is None else owners[places]] = True
        return np.flatnonzero(found)

    def row(self, table: str, row: Row, *, counted: bool = True) -> Row:
        """The row with its texts masked, and `masked` saying what was found. Tables without texts stay as they are.

        What does not come into the lake is not to be counted.
        """
        found: Counter[str] = Counter()
        mask = _Mask(self.finders, found, time.thread_time() + self.row_seconds)
        if table == RESPONSES:
            row = _response(row, mask)
        elif table == FEEDBACK:
            row = _feedback(row, mask)
        for kind, count in found.items() if counted else ():
            metrics.MASKED.labels(table, kind).inc(count)
        return {**row, "masked": sorted(found.items())}


def _texts(values: pa.Array, path: Sequence[str]) -> "tuple[pa.Array, np.ndarray[Any, Any] | None]":
    """All texts at a path within a column, and in which row each is; none where each is in its own."""
    owners = None
    path = list(path)
    while True:
        if pa.types.is_map(values.type):
            values = values.cast(pa.list_(pa.struct(list(values.type.field(0).type))))
        if pa.types.is_list(values.type):
            inner = pc.list_parent_indices(values).to_numpy()
            owners = inner if owners is None else owners[inner]
            values = values.flatten()
        elif pa.types.is_struct(values.type):
            values = pc.struct_field(values, path.pop(0))
        else:
            return values, owners


def _masked(text: str, kind: str, spans: Iterator[Span], found: Counter[str], deadline: float) -> str:
    pieces, done = [], 0
    for start, end in sorted(_in_time(spans, deadline)):
        if end <= done:  # nothing, or within what is masked already
            continue
        if start >= done:
            pieces.append(text[done:start])
            pieces.append(f"[{kind}]")
            found[kind] += 1
        done = end
    if not pieces:
        return text
    return "".join([*pieces, text[done:]])


def _in_time(spans: Iterator[Span], deadline: float) -> Iterator[Span]:
    for span in spans:
        if time.thread_time() > deadline:
            raise TooSlow
        yield span


@dataclass(frozen=True)
class _Mask:
    """What is done to each text of one row; `found` is added to. The deadline is of the thread's time."""

    finders: Mapping[str, Finder]
    found: Counter[str]
    deadline: float

    def text(self, text: str) -> str:
        if not text:
            return text
        masked = text
        found: Counter[str] = Counter()
        impossible = patterns.impossible(text)
        try:
            for kind, finder in self.finders.items():
                if kind in impossible:
                    continue
                spans = finder(masked)
                if (first := next(spans, None)) is not None:  # mostly there is nothing
                    masked = _masked(masked, kind, itertools.chain((first,), spans), found, self.deadline)
        except TooSlow:
            masked, found = f"[{UNREAD}]", Counter({UNREAD: 1})
        self.found.update(found)
        return masked

    def json_text(self, text: str) -> str:
        """JSON stays JSON: its strings and numbers are looked at one by one. What is none is a text like any other."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self.text(text)
        before = self.found.total()
        masked = self._value(value)
        return text if self.found.total() == before else json.dumps(masked, ensure_ascii=False)

    def _value(self, value: Any) -> Any:
        match value:
            case str():
                return self.text(value)
            case dict():
                return {self.text(name): self._value(one) for name, one in value.items()}
            case list():
                return [self._value(one) for one in value]
            case int() if not isinstance(value, bool):
                masked = self.text(str(value))
                return value if masked == str(value) else masked
            case _:
                return value

    def calls(self, calls: Sequence[Row]) -> list[Row]:
        return [{**call, "arguments_json": self.json_text(call["arguments_json"])} for call in calls]


def _response(row: Row, mask: _Mask) -> Row:
    row = {
        **row,
        "metadata": [(name, mask.text(value)) for name, value in row["metadata"]],
        "messages": [
            {
                **message,
                "content": mask.text(message["content"]),
                "reasoning": mask.text(message["reasoning"]),
                "tool_calls": mask.calls(message["tool_calls"]),
            }
            for message in row["messages"]
        ],
        "tools": [
            {
                **tool,
                "description": mask.text(tool["description"]),
                "parameters_json": mask.json_text(tool["parameters_json"]),
            }
            for tool in row["tools"]
        ],
        "stop": [mask.text(stop) for stop in row["stop"]],
        "text": mask.text(row["text"]),
        "reasoning": mask.text(row["reasoning"]),
        "tool_calls": mask.calls(row["tool_calls"]),
    }
    if mask.found:
        row |= {"prompt_token_ids": [], "output_token_ids": [], "output_logprobs": [], "logprobs_mode": ""}
    return row


def _feedback(row: Row, mask: _Mask) -> Row:
    row = {**row, "comment": mask.text(row["comment"])}
    if row["correction"]:
        row["correction"] = mask.text(row["correction"])
    if row["annotation"]:
        row["annotation"] = {**row["annotation"], "note": mask.text(row["annotation"]["note"])}
    return row
