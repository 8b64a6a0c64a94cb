"""What of an answer is content, what is thought, and what calls a tool: vLLM's parsers, one step at a time."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from attune.chat.messages import MAX_CALLS
from attune.chat.tools import function_tools
from attune.inference.engine import Dialect, Grammar
from attune.v1 import chat_pb2, event_pb2

logger = logging.getLogger(__name__)

_Mode = event_pb2.ToolChoice


@dataclass(slots=True)
class Piece:
    """What some sampled text adds to an answer."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[chat_pb2.ToolCallDelta] = field(default_factory=list)


class Parsing:
    """Makes parsers for one model."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def parser(
        self, tools: Sequence[event_pb2.Tool], choice: event_pb2.ToolChoice, *, streaming: bool
    ) -> "Parser | None":
        """A parser for one answer; None when all of it is content."""
        request = self._dialect.request(function_tools(tools), openai_choice(choice)) if tools else None
        calls = None if request is None else self._dialect.tool_parser(request)
        thoughts = self._dialect.reasoning_parser()
        if calls is None and thoughts is None:
            return None
        names = frozenset(tool.name for tool in tools)
        request = request or self._dialect.request((), "")
        return (_StreamParser if streaming else _WholeParser)(calls, thoughts, request, names)

    def forced_call(self, tools: Sequence[event_pb2.Tool], choice: event_pb2.ToolChoice) -> Grammar | None:
        """What holds the model to a call, where the choice asks for one; raises FailedPrecondition."""
        if choice.mode not in (_Mode.MODE_REQUIRED, _Mode.MODE_NAMED):
            return None
        return self._dialect.forced_call(function_tools(tools), openai_choice(choice))


def openai_choice(choice: event_pb2.ToolChoice) -> Any:
    """As OpenAI's API says it."""
    match choice.mode:
        case _Mode.MODE_REQUIRED:
            return "required"
        case _Mode.MODE_NAMED:
            return {"type": "function", "function": {"name": choice.name}}
        case _:
            return "auto"


class Parser(ABC):
    """Reads one answer. `feed` after each step of the engine, `finish` once at its end.

    What vLLM's parser cannot read stays content: a malformed call is text. So is a call of a tool that was not offered,
    which nobody could follow; behind calls that were, it and what comes after it are left out.
    """

    def __init__(self, calls: Any, thoughts: Any, request: Any, offered: frozenset[str]) -> None:
        self._calls = calls
        self._thoughts = thoughts
        self._request = request
        self._offered = offered

    @abstractmethod
    def feed(self, text: str, token_ids: Sequence[int]) -> Piece:
        """`text` is new; `token_ids` are all so far."""

    @abstractmethod
    def finish(self) -> Piece:
        """What was held back, and nothing else."""


class _WholeParser(Parser):
    """For answers that come in one piece."""

    _text = ""

    def feed(self, text: str, token_ids: Sequence[int]) -> Piece:
        self._text += text
        return Piece()

    def finish(self) -> Piece:
        piece, content = Piece(), self._text
        if self._thoughts is not None:
            reasoning, rest = self._thoughts.extract_reasoning(content, self._request)
            piece.reasoning, content = reasoning or "", rest or ""
        if self._calls is not None:
            found = self._calls.extract_tool_calls(content, self._request)
            calls = list(takewhile(lambda call: call.function.name in self._offered, found.tool_calls))
            if calls and len(found.tool_calls) <= MAX_CALLS:
                content = found.content or ""
                piece.tool_calls = [
                    chat_pb2.ToolCallDelta(
                        index=index, id=call.id, name=call.function.name, arguments_json=call.function.arguments
                    )
                    for index, call in enumerate(calls)
                ]
        piece.content = content
        return piece


class _StreamParser(Parser):
    """For answers that come token by token."""

    def __init__(self, calls: Any, thoughts: Any, request: Any, offered: frozenset[str]) -> None:
        super().__init__(calls, thoughts, request, offered)
        self._thinking = _Stage(thoughts.extract_reasoning_streaming) if thoughts is not None else None
        self._calling = _Stage(calls.extract_tool_calls_streaming, request) if calls is not None else None
        self._seen = 0
        # Of what the tool parser was given, how much it passed on as content, and how many calls it told of.
        self._passed = ""
        self._told = 0
        # After calls that were told of, one of a tool that was not offered: nothing more is.
        self._over = False

    def feed(self, text: str, token_ids: Sequence[int]) -> Piece:
        fresh, self._seen = list(token_ids[self._seen :]), len(token_ids)
        if not text and not fresh:
            return Piece()
        if self._thinking is None:
            return self._call(text, fresh)
        message = self._thinking.step(text, fresh)
        if self._thoughts.is_reasoning_end(fresh):
            self._thinking = None
        piece = Piece(reasoning=message.reasoning or "") if message is not None else Piece()
        if message is not None and message.content:
            called = self._call(message.content, fresh)
            piece.content, piece.tool_calls = called.content, called.tool_calls
        return piece

    def finish(self) -> Piece:
        if self._calling is None or self._over:
            return Piece()
        if self._told == 0:
            # What looked like the beginning of a call and was none.
            return Piece(content=self._calling.text[len(self._passed) :])
        rest = self._calls.get_remaining_unstreamed_args()
        if not rest:
            return Piece()
        return Piece(tool_calls=[chat_pb2.ToolCallDelta(index=self._told - 1, arguments_json=rest)])

    def _call(self, text: str, fresh: list[int]) -> Piece:
        if self._calling is None:
            return Piece(content=text)
        message = None if self._over else self._calling.step(text, fresh)
        if message is None:
            return Piece()
        piece = Piece(content=message.content or "")
        self._passed += piece.content
        for each in message.tool_calls or ():
            if not self._is_offered(each):
                piece.content += self._refuse(self._calling)
                break
            piece.tool_calls.append(self._delta(each))
        return piece

    def _is_offered(self, call: Any) -> bool:
        """Whether its name is, as far as it was told."""
        return not (call.function and call.function.name) or call.function.name in self._offered

    def _refuse(self, calling: "_Stage") -> str:
        """Ends the calls; what was taken for the first of them and is content instead."""
        if self._told:
            self._over = True
            return ""
        self._calling = None
        return calling.text[len(self._passed) :]

    def _delta(self, call: Any) -> chat_pb2.ToolCallDelta:
        self._told = max(self._told, call.index + 1)
        function = call.function
        arguments = (function.arguments if function else None) or ""
        return chat_pb2.ToolCallDelta(
            index=call.index,
            id=call.id or "",
            name=(function.name if function else None) or "",
            arguments_json=arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
        )


class _Stage:
    """What vLLM's streaming parsers are given at each step: the text and ids before, now, and between."""

    def __init__(self, parse: Any, *more: Any) -> None:
        self._parse = parse
        self._more = more
        self.text = ""
        self._ids: list[int] = []

    def step(self, text: str, fresh: list[int]) -> Any:
        before, ids_before = self.text, list(self._ids)
        self.text += text
        self._ids += fresh
        return self._parse(before, self.text, text, ids_before, self._ids, fresh, *self._more)
