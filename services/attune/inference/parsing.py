"""What of an answer is content, what is thought, and what calls a tool: vLLM's parsers, one step at a time."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
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
        return (_StreamParser if streaming else _WholeParser)(calls, thoughts, request or self._dialect.request((), ""))

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


class Parser:
    """Reads one answer. `feed` after each step of the engine, `finish` once at its end.

    What vLLM's parser cannot read stays content: a malformed call is text.
    """

    def __init__(self, calls: Any, thoughts: Any, request: Any) -> None:
        self._calls = calls
        self._thoughts = thoughts
        self._request = request

    def feed(self, text: str, token_ids: Sequence[int]) -> Piece:
        """`text` is new; `token_ids` are all so far."""
        raise NotImplementedError

    def finish(self) -> Piece:
        raise NotImplementedError


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
            if found.tools_called and len(found.tool_calls) <= MAX_CALLS:
                content = found.content or ""
                piece.tool_calls = [
                    chat_pb2.ToolCallDelta(
                        index=index, id=call.id, name=call.function.name, arguments_json=call.function.arguments
                    )
                    for index, call in enumerate(found.tool_calls)
                ]
        piece.content = content
        return piece


class _StreamParser(Parser):
    """For answers that come token by token."""

    def __init__(self, calls: Any, thoughts: Any, request: Any) -> None:
        super().__init__(calls, thoughts, request)
        self._thinking = _Stage(thoughts.extract_reasoning_streaming) if thoughts is not None else None
        self._calling = _Stage(calls.extract_tool_calls_streaming, request) if calls is not None else None
        self._seen = 0
        # Of what the tool parser was given, how much it passed on as content, and how many calls it told of.
        self._passed = ""
        self._told = 0

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
        if self._calling is None:
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
        message = self._calling.step(text, fresh)
        if message is None:
            return Piece()
        content = message.content or ""
        self._passed += content
        return Piece(content=content, tool_calls=[self._delta(each) for each in message.tool_calls or ()])

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
