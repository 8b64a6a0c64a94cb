import json

import pytest

from attune.client.imports import FORMATS, Line, read_lines
from attune.v1 import event_pb2


def read(form: str, *rows: object) -> list[Line]:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return list(read_lines(iter(lines), form, name="file", persona="tutor"))


def ranks(line: Line) -> list[int]:
    assert line.record is not None
    (request,) = line.record.feedback([f"r-{place}" for place in range(9)])
    assert [entry.response_id for entry in request.ranking.entries] == ["r-0", "r-1", "r-2"][
        : len(request.ranking.entries)
    ]
    return [entry.rank for entry in request.ranking.entries]


def test_two_dialogues_with_one_beginning_become_a_ranking() -> None:
    start = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: How are you?\n\nAssistant:"
    (line,) = read("hh", {"chosen": f"{start} Well.", "rejected": f"{start} Who cares."})
    assert line.record is not None
    request = line.record.request
    assert [message.content for message in request.messages] == ["Hi.", "Hello.", "How are you?"]
    assert [answer.content for answer in request.answers] == ["Well.", "Who cares."]
    assert (ranks(line), request.persona) == ([1, 2], "tutor")


def people(*lines: Line) -> list[str]:
    records = [line.record for line in lines if line.record is not None]
    return [said.end_user_id for record in records for said in record.feedback(["r-0", "r-1"])]


def test_who_judged_is_who_the_line_names() -> None:
    def dialogues(**more: object) -> dict[str, object]:
        start = "\n\nHuman: Hi.\n\nAssistant:"
        return {"chosen": f"{start} Hello.", "rejected": f"{start} No.", **more}

    named = [dialogues(annotator_id=17), dialogues(user="u-1"), dialogues(end_user_id="jane", user="u-1")]
    assert people(*read("hh", *named)) == ["17", "u-1", "jane"]
    (line,) = read("hh", dialogues(user=["jane"]))
    assert line.reason == "who judged is neither text nor a number"


def test_where_nobody_is_named_each_prompt_has_a_person_of_its_own() -> None:
    def dialogues(prompt: str, answer: str) -> dict[str, str]:
        start = f"\n\nHuman: {prompt}\n\nAssistant:"
        return {"chosen": f"{start} {answer}", "rejected": f"{start} No."}

    one, again, other = people(*read("hh", dialogues("a", "x"), dialogues("a", "y"), dialogues("b", "x")))
    assert one == again != other
    assert all(len(name) <= 256 and name.startswith("import/") for name in (one, other))
    answers = [{"content": "a", "thumb": "up"}]
    talks = [{"messages": [{"role": "user", "content": "q"}], "answers": answers, "conversation_id": n} for n in "cd"]
    assert people(*read("attune", *talks)) == ["import/c", "import/d"]


def test_equal_scores_are_ties() -> None:
    completions = [{"response": text, "overall_score": score} for text, score in (("a", 7), ("b", 9.5), ("c", 7))]
    (line,) = read("ultrafeedback", {"instruction": "Do it.", "completions": completions})
    assert line.record is not None
    assert ranks(line) == [2, 1, 2]


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
    rating, thumb = line.record.feedback(["r-0", "r-1"])
    assert (rating.response_id, rating.rating) == ("r-0", 4)
    assert (thumb.response_id, thumb.thumb) == ("r-1", event_pb2.THUMB_DOWN)


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


SIGNALS = [
    {"thumb": "down", "author": "reviewer", "guideline_version": "v1", "propensity": 0.5},
    {"rating": 4, "comment": "good", "tags": ["great"]},
    {"correction": "I cannot."},
    {"annotation": {"start": 1, "end": 3, "tag": "wrong", "note": "no"}},
    {"outcome": {"name": "solved", "value": True}, "author": "application"},
    {"outcome": {"name": "minutes", "value": 2.5}},
    {"implicit": "copied"},
    {"comment": "hm"},
    {"answers": [1, 0], "ranks": [1, 1]},
]


def asked(*feedback: object) -> Line:
    answers = [{"content": "a"}, {"content": "b"}]
    row = {"messages": [{"role": "user", "content": "q"}], "answers": answers, "feedback": list(feedback)}
    (line,) = read("attune", row)
    return line


def test_every_kind_of_feedback_can_stand_in_a_line() -> None:
    record = asked(*SIGNALS).record
    assert record is not None
    requests = list(record.feedback(["r-0", "r-1"]))
    assert [request.WhichOneof("signal") for request in requests] == [
        "thumb", "rating", "correction", "annotation", "outcome", "outcome", "implicit", "remark", "ranking",
    ]  # fmt: skip
    assert len({request.client_feedback_id for request in requests}) == len(SIGNALS)
    assert [(entry.response_id, entry.rank) for entry in requests[-1].ranking.entries] == [("r-1", 1), ("r-0", 1)]
    assert (requests[0].author, requests[0].propensity) == (event_pb2.AUTHOR_REVIEWER, 0.5)


def test_the_id_of_feedback_follows_from_what_it_says_and_not_from_its_place() -> None:
    one, other = asked(*SIGNALS).record, asked(*reversed(SIGNALS)).record
    assert one is not None
    assert other is not None
    other.request.import_id = one.request.import_id
    ids = [{said.client_feedback_id for said in record.feedback(["r-0", "r-1"])} for record in (one, other)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("feedback", "reason"),
    [
        ({"thumb": "up", "rating": 3}, "several signals: thumb, rating"),
        ({"answers": [2], "thumb": "up"}, "answers that are not there; they are 0 to 1"),
        ({"answers": [-1], "thumb": "up"}, "answers that are not there"),
        ({"answers": [0, 1], "thumb": "up"}, "all other feedback one answer"),
        ({"answers": [0, 1], "ranks": [1]}, "one rank for each"),
        ({"thumb": "sideways"}, "thumb must be one of up, down"),
        ({"thumb": "up", "author": "nobody"}, "author must be one of"),
        ({"rating": "four"}, "not of the format attune"),
        ({"outcome": {"name": "x"}}, "not of the format attune"),
        (7, "not of the format attune"),
    ],
)
def test_feedback_that_makes_no_sense_makes_the_line_bad(feedback: object, reason: str) -> None:
    line = asked(feedback)
    assert line.record is None
    assert reason in line.reason


@pytest.mark.parametrize(
    ("form", "row", "reason"),
    [
        ("attune", {"messages": []}, "not of the format attune: it has no answers"),
        ("attune", {"messages": 5, "answers": []}, "not of the format attune: something in it is of another kind"),
        ("hh", {"chosen": 5, "rejected": ""}, "not of the format hh: something in it is of another kind"),
        (
            "ultrafeedback",
            {"instruction": "a", "completions": [{"response": "a", "overall_score": "good"}]},
            "not of the format ultrafeedback: something in it is of another kind",
        ),
    ],
)
def test_what_is_wrong_with_a_line_is_said_in_plain_words(form: str, row: dict[str, object], reason: str) -> None:
    (line,) = read(form, row)
    assert line.reason == reason
