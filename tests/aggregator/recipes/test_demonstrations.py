"""What the recipe `demonstrations` takes for an answer to imitate."""

from typing import Any

import pytest

from attune.v1 import event_pb2
from tests.aggregator.plant import Plant
from tests.aggregator.recipes.conversation import DAY_MS, Table, answer, imported, opinion, said
from tests.lake.events import NOW_UNIX_MS, PLAIN


@pytest.fixture
def demonstrations(plant: Plant) -> Table:
    return Table(plant, "demonstrations")


def correction(text: str) -> event_pb2.Correction:
    return event_pb2.Correction(text=text)


def test_five_stars_make_the_response_a_demonstration_with_its_token_ids(demonstrations: Table) -> None:
    demonstrations.put(answer(3), opinion(8, 3, rating=5, end_user="ann"))
    (row,) = demonstrations.rows()
    assert len(row.pop("example_id")) == 32
    assert row.pop("split") in ("train", "heldout")
    assert row == {
        "label": "five_stars",
        "weight": 1.0,
        "weighed_by": [],
        "people": ["ann", "user-3"],
        "feedback_ids": ["feedback-8"],
        "response_ids": ["r-3"],
        "response_id": "r-3",
        "persona": "concierge",
        "persona_version": "v1",
        "guideline_version": "",
        "policy_id": "base",
        "conversation_id": "c-3",
        "end_user": "ann",
        "turn": 1,
        "messages": [{"role": "user", "content": "Hello?", **PLAIN}],
        "tools": [],
        "completion": [said("Done. 3")],
        "prompt_token_ids": [1, 2, 3],
        "output_token_ids": [4_000_000_000, 5],
        "output_logprobs": [-0.5, -0.25],
        "logprobs_mode": "processed_logprobs",
        "base_model_hash": "b" * 64,
        "chat_template_hash": "c" * 64,
        "created_unix_ms": NOW_UNIX_MS + 1008,
    }


def test_a_correction_is_a_demonstration_without_token_ids(demonstrations: Table) -> None:
    demonstrations.put(answer(1), opinion(1, 1, correction=correction("I cannot."), guideline_version="g2"))
    (row,) = demonstrations.rows()
    assert (row["label"], row["completion"], row["policy_id"]) == ("correction", [said("I cannot.")], "")
    assert (row["output_token_ids"], row["output_logprobs"], row["guideline_version"]) == ([], [], "g2")
    assert row["prompt_token_ids"] == [1, 2, 1]


def test_only_five_stars_are_enough(demonstrations: Table) -> None:
    demonstrations.put(*[answer(n) for n in range(1, 6)], *[opinion(n, n, rating=n) for n in range(1, 6)])
    assert [row["response_id"] for row in demonstrations.rows()] == ["r-5"]
    assert demonstrations.left_out() == {"not_five_stars": 4}


@pytest.mark.parametrize("doubt", [{"rating": 2}, {"correction": correction("No.")}])
def test_five_stars_for_what_somebody_else_found_wrong_do_not_count(
    demonstrations: Table, doubt: dict[str, Any]
) -> None:
    demonstrations.put(answer(1), opinion(1, 1, rating=5), opinion(2, 1, end_user="bob", **doubt))
    assert [row["label"] for row in demonstrations.rows()] == (["correction"] if "correction" in doubt else [])
    assert demonstrations.left_out()["contradicted"] == 1


def test_a_doubt_that_was_taken_back_is_none(demonstrations: Table) -> None:
    demonstrations.put(answer(1), opinion(1, 1, rating=5), opinion(2, 1, rating=1, end_user="bob"))
    demonstrations.put(opinion(3, 1, rating=1, end_user="bob", revision=1, retracted=True))
    assert [row["label"] for row in demonstrations.rows()] == ["five_stars"]
    assert demonstrations.left_out() == {"retracted": 1}


def test_a_correction_that_was_taken_back_is_no_doubt(demonstrations: Table) -> None:
    demonstrations.put(answer(1), opinion(1, 1, rating=5))
    demonstrations.put(opinion(2, 1, correction=correction("No."), end_user="bob", retracted=True))
    assert [row["label"] for row in demonstrations.rows()] == ["five_stars"]


def test_a_correction_that_changes_nothing_is_none(demonstrations: Table) -> None:
    demonstrations.put(answer(1), opinion(1, 1, correction=correction("Done. 1")))
    assert demonstrations.left_out() == {"same_answer": 1}


def test_an_imported_answer_with_five_stars_has_no_token_ids(demonstrations: Table) -> None:
    demonstrations.put(imported(1), opinion(1, 1, rating=5))
    (row,) = demonstrations.rows()
    assert (row["completion"], row["output_token_ids"], row["prompt_token_ids"]) == ([said("Done. 1")], [], [])


@pytest.mark.parametrize(
    ("reason", "changes", "signal"),
    [
        ("aborted", {"finish_reason": event_pb2.FINISH_REASON_ABORTED}, {}),
        ("not_consented", {"consent": event_pb2.Consent(train=False)}, {}),
        ("other_persona", {"persona": "tutor"}, {}),
        ("unknown_response", {"response_id": "else"}, {}),
        ("outside_window", {}, {"header": event_pb2.EventHeader(created_unix_ms=NOW_UNIX_MS - 31 * DAY_MS)}),
    ],
)
def test_what_may_not_be_learned_from_is_left_out(
    demonstrations: Table, reason: str, changes: dict[str, Any], signal: dict[str, Any]
) -> None:
    demonstrations.put(answer(1, **changes), opinion(1, 1, correction=correction("No."), **signal))
    assert demonstrations.rows() == []
    assert demonstrations.left_out() == {reason: 1}
