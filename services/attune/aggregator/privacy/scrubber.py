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

from attune import metrics
from attune.aggregator.privacy import patterns
from attune.aggregator.privacy.patterns import Finder, Span, TooSlow
from attune.lake.tables import FEEDBACK, RESPONSES
from attune.settings import PrivacySettings

Row = dict[str, Any]

UNREAD = "unread"
"""The kind of a text that could not be looked through in time: all of it is masked."""

# A megabyte takes some tenths of a second.
_ROW_SECONDS = 1.0


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
