"""What becomes of calls in an answer, whole and streamed: vLLM's own parser, the demo model's tokens."""

from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from attune.inference.parsing import Parsing
from attune.v1 import event_pb2
from tests.inference.house import dialect

AUTO = event_pb2.ToolChoice()
OFFERED = [event_pb2.Tool(name="call_cab"), event_pb2.Tool(name="order_pizza")]
CAB = '<tool_call>\n{"name": "call_cab", "arguments": {"place": "Milan"}}\n</tool_call>'
PIZZA = '<tool_call>\n{"name": "order_pizza", "arguments": {}}\n</tool_call>'
STRANGE = '<tool_call>\n{"name": "launch", "arguments": {"to": "Mars"}}\n</tool_call>'

Read = tuple[str, list[tuple[str, str]]]

# An answer, and what it is read as: content, and calls by name with their arguments.
ANSWERS: dict[str, tuple[str, Read]] = {
    "one": (CAB, ("", [("call_cab", '{"place": "Milan"}')])),
    "words and two": (f"Gladly!{CAB}{PIZZA}", ("Gladly!", [("call_cab", '{"place": "Milan"}'), ("order_pizza", "{}")])),
    "not offered": (STRANGE, (STRANGE, [])),
    "words, then not offered": (f"Gladly!{STRANGE} Done.", (f"Gladly!{STRANGE} Done.", [])),
    "not offered, then offered": (STRANGE + CAB, (STRANGE + CAB, [])),
    "offered, then not": (CAB + STRANGE, ("", [("call_cab", '{"place": "Milan"}')])),
    "offered, then not, then offered": (CAB + STRANGE + PIZZA, ("", [("call_cab", '{"place": "Milan"}')])),
    "a name that begins like one offered": (CAB.replace("cab", "cabin"), (CAB.replace("cab", "cabin"), [])),
    "no call": ("<tool_call", ("<tool_call", [])),
}


def read(parsing: Parsing, pieces: list[tuple[str, list[int]]], *, streaming: bool) -> Read:
    parser = parsing.parser(OFFERED, AUTO, streaming=streaming)
    assert parser is not None
    content, calls = "", dict[int, list[str]]()
    for piece in [*(parser.feed(text, ids) for text, ids in pieces), parser.finish()]:
        content += piece.content
        for delta in piece.tool_calls:
            call = calls.setdefault(delta.index, ["", ""])
            call[0] += delta.name
            call[1] += delta.arguments_json
    return content, [(name, arguments) for name, arguments in calls.values()]


@pytest.mark.parametrize("case", ANSWERS)
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("step", [1, 5, 1000])
def test_only_tools_that_were_offered_are_called(case: str, streaming: bool, step: int, demo_model: Path) -> None:
    text, expected = ANSWERS[case]
    tokenizer = AutoTokenizer.from_pretrained(demo_model, local_files_only=True)
    ids = tokenizer.encode(text, add_special_tokens=False)
    ends = [*range(0, len(ids), step), len(ids)]
    pieces = [(tokenizer.decode(ids[start:end]), ids[:end]) for start, end in pairwise(ends)]
    assert "".join(said for said, _ in pieces) == text
    assert read(Parsing(dialect(demo_model)), pieces, streaming=streaming) == expected
