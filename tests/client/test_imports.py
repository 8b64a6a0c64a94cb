import json

import pytest

from attune.client.imports import FORMATS, Line, read_lines
from attune.v1 import event_pb2


def read(form: str, *rows: object) -> list[Line]:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return list(read_lines(iter(lines), form, name="file", persona="tutor"))


def test_two_dialogues_with_one_beginning_become_a_ranking() -> None:
    start = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: How are you?\n\nAssistant:"
    (line,) = read("hh", {"chosen": f"{start} Well.", "rejected": f"{start} Who cares."})
    assert line.record is not None
    request = line.record.request
    assert [message.content for message in request.messages] == ["Hi.", "Hello.", "How are you?"]
    assert [answer.content for answer in request.answers] == ["Well.", "Who cares."]
    assert (list(line.record.ranks), request.persona) == ([1, 2], "tutor")


def test_equal_scores_are_ties() -> None:
    completions = [{"response": text, "overall_score": score} for text, score in (("a", 7), ("b", 9.5), ("c", 7))]
    (line,) = read("ultrafeedback", {"instruction": "Do it.", "completions": completions})
    assert line.record is not None
    assert list(line.record.ranks) == [2, 1, 2]


def test_a_stored_completion_keeps_its_calls() -> None:
    call = {"id": "c-1", "type": "function", "function": {"name": "call_cab", "arguments": "{}"}}
    row = {
        "id": "chatcmpl-1",
        "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "A cab."}],
        "choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [call]}}],
    }
    (line,) = read("openai-stored", row)
    assert line.record is not None
    request = line.record.request
    assert request.import_id == "chatcmpl-1"
    assert request.messages[0].role == event_pb2.ROLE_SYSTEM
    assert request.answers[0].tool_calls[0].name == "call_cab"


def test_ratings_and_thumbs_go_with_their_answers() -> None:
    answers = [{"content": "a", "rating": 4}, {"content": "b", "thumb": "down"}]
    (line,) = read("attune", {"messages": [{"role": "user", "content": "q"}], "answers": answers})
    assert line.record is not None
    assert (line.record.ranks, line.record.ratings, line.record.thumbs) == ((), {0: 4}, {1: False})


def test_the_same_line_has_the_same_id_wherever_it_stands() -> None:
    row = {"messages": [{"role": "user", "content": "q"}], "answers": [{"content": "a"}]}
    first, _, again = read("attune", row, b"  ", row, b"")[0], None, read("attune", {"x": 1}, row)[1]
    assert first.record is not None
    assert again.record is not None
    assert first.record.request.import_id == again.record.request.import_id


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b"7", b"\xff", b"{}", b'{"messages": 3, "answers": 4}', b'{"chosen": "a", "rejected": "b"}'],
)
def test_a_line_that_cannot_be_read_says_why_and_the_next_is_read(form: str, line: bytes) -> None:
    bad, *_ = read(form, line, {})
    assert bad.record is None
    assert bad.number == 1
    assert bad.reason
