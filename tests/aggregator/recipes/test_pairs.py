"""What the recipe `pairs` makes a comparison of, and what it leaves out."""

from typing import Any

import pytest

from attune.v1 import event_pb2
from tests.aggregator.plant import Plant
from tests.aggregator.recipes.conversation import (
    DAY_MS,
    DOWN,
    UP,
    Table,
    answer,
    assistant,
    imported,
    opinion,
    ranking,
    said,
    user,
)  # fmt: skip
from tests.lake.events import NOW_UNIX_MS, PLAIN


@pytest.fixture
def pairs(plant: Plant) -> Table:
    return Table(plant, "pairs")


def compared(rows: list[dict[str, Any]]) -> list[tuple[str, str, str, float]]:
    return [(row["label"], row["chosen_response_id"], row["rejected_response_id"], row["weight"]) for row in rows]


def test_a_row_carries_context_answers_token_ids_and_who_spoke(pairs: Table) -> None:
    context = [user("Hi"), assistant("Hello."), user("A cab, please.")]
    pairs.put(answer(1, context, turn=2), answer(2, context, turn=2))
    pairs.put(opinion(10, 1, thumb=DOWN), opinion(11, 2, thumb=UP, end_user="ann", guideline_version="g7"))
    (row,) = pairs.rows()
    assert len(row.pop("example_id")) == 32
    assert row.pop("split") in ("train", "heldout")
    assert row == {
        "label": "thumbs",
        "weight": 1.0,
        "weighed_by": [],
        "people": ["ann", "user-1", "user-2"],
        "feedback_ids": ["feedback-11", "feedback-10"],
        "response_ids": ["r-2", "r-1"],
        "persona": "concierge",
        "persona_version": "v1",
        "guideline_version": "g7",
        "conversation_id": "c-1",
        "turn": 2,
        "messages": [
            {"role": "user", "content": "Hi", **PLAIN},
            said("Hello."),
            {"role": "user", "content": "A cab, please.", **PLAIN},
        ],
        "tools": [],
        "prompt_token_ids": [1, 2, 1],
        "chosen_response_id": "r-2",
        "chosen_policy_id": "base",
        "chosen": [said("Done. 2")],
        "chosen_token_ids": [4_000_000_000, 5],
        "chosen_logprobs": [-0.5, -0.25],
        "rejected_response_id": "r-1",
        "rejected_policy_id": "base",
        "rejected": [said("Done. 1")],
        "rejected_token_ids": [4_000_000_000, 5],
        "rejected_logprobs": [-0.5, -0.25],
        "logprobs_mode": "processed_logprobs",
        "base_model_hash": "b" * 64,
        "chat_template_hash": "c" * 64,
        "created_unix_ms": NOW_UNIX_MS + 1011,
    }


def test_thumbs_go_together_on_one_prompt_only_and_each_once(pairs: Table) -> None:
    pairs.put(
        *[answer(n) for n in range(1, 5)],
        answer(5, "Another?"),
        answer(6, "Another?", tools=[event_pb2.Tool(name="cab")]),
    )
    pairs.put(opinion(1, 1, thumb=UP), opinion(2, 2, thumb=DOWN), opinion(3, 3, thumb=UP), opinion(4, 4, thumb=DOWN))
    pairs.put(opinion(5, 5, thumb=UP), opinion(6, 6, thumb=DOWN))
    assert compared(pairs.rows()) == [("thumbs", "r-1", "r-2", 1.0), ("thumbs", "r-3", "r-4", 1.0)]
    assert pairs.left_out() == {"no_counterpart": 2}


def test_the_majority_decides_of_one_answer_however_often_it_was_given(pairs: Table) -> None:
    pairs.put(answer(1, text="Lima."), answer(2, text="Lima."), answer(3, text="Quito."), answer(4, text="Bonn."))
    pairs.put(opinion(1, 1, thumb=UP), opinion(2, 2, thumb=UP), opinion(3, 2, thumb=DOWN, end_user="bob"))
    pairs.put(opinion(4, 3, thumb=DOWN), opinion(5, 4, thumb=UP), opinion(6, 4, thumb=DOWN, end_user="bob"))
    assert compared(pairs.rows()) == [("thumbs", "r-1", "r-3", 1.0)]
    assert pairs.left_out() == {"no_counterpart": 1, "outvoted": 1, "tie": 2}


def test_a_ranking_gives_every_pair_that_is_not_tied(pairs: Table) -> None:
    pairs.put(*[answer(n) for n in range(1, 4)])
    pairs.put(ranking(1, {1: 2, 2: 1, 3: 2}))
    assert compared(pairs.rows()) == [("ranking", "r-2", "r-1", 2 / 3), ("ranking", "r-2", "r-3", 2 / 3)]
    assert pairs.left_out() == {"tie": 1}


def test_of_two_opposite_opinions_none_counts_and_of_three_the_two(pairs: Table) -> None:
    pairs.put(answer(1), answer(2), ranking(1, {1: 1, 2: 2}), ranking(2, {1: 2, 2: 1}, end_user="bob"))
    assert pairs.rows() == []
    assert pairs.left_out() == {"contradicted": 2}
    pairs.put(opinion(3, 1, thumb=DOWN), opinion(4, 2, thumb=UP))
    assert compared(pairs.rows()) == [("ranking", "r-2", "r-1", 1.0), ("thumbs", "r-2", "r-1", 1.0)]
    assert pairs.left_out() == {"outvoted": 1}


def test_a_ranking_that_is_revised_or_taken_back_counts_as_it_stands(pairs: Table) -> None:
    pairs.put(answer(1), answer(2), ranking(1, {1: 2, 2: 1}, revision=1), ranking(2, {1: 1, 2: 2}))
    assert compared(pairs.rows()) == [("ranking", "r-2", "r-1", 1.0)]
    pairs.put(ranking(3, {1: 1, 2: 2}, revision=2, retracted=True))
    assert pairs.rows() == []
    assert pairs.left_out() == {"retracted": 1}


def test_a_ranking_over_different_prompts_or_the_same_answer_is_none(pairs: Table) -> None:
    pairs.put(answer(1, "A?"), answer(2, "B?"), ranking(1, {1: 1, 2: 2}))
    same = [answer(3), answer(4)]
    for event in same:
        event.text = "Yes."
    pairs.put(*same, ranking(2, {3: 1, 4: 2}))
    assert pairs.rows() == []
    assert pairs.left_out() == {"different_prompts": 1, "same_answer": 1}


def test_a_response_that_is_ranked_twice_makes_no_pair_twice(pairs: Table) -> None:
    event = ranking(1, {1: 1, 2: 2})
    event.ranking.entries.add(response_id="r-2", rank=3)
    pairs.put(answer(1), answer(2), event)
    assert len(pairs.rows()) == 1


def test_a_correction_is_preferred_to_what_was_said(pairs: Table) -> None:
    pairs.put(answer(1), opinion(1, 1, correction=event_pb2.Correction(text="I cannot."), guideline_version="g2"))
    pairs.put(answer(2), opinion(2, 2, correction=event_pb2.Correction(text="Done. 2")))
    (row,) = pairs.rows()
    assert (row["label"], row["chosen"], row["rejected"]) == ("correction", [said("I cannot.")], [said("Done. 1")])
    assert (row["chosen_token_ids"], row["chosen_logprobs"], row["chosen_policy_id"]) == ([], [], "")
    assert (row["chosen_response_id"], row["response_ids"], row["guideline_version"]) == ("", ["r-1"], "g2")
    assert row["rejected_token_ids"] == [4_000_000_000, 5]
    assert pairs.left_out() == {"same_answer": 1}


def test_imported_answers_are_compared_too(pairs: Table) -> None:
    pairs.put(imported(1), imported(2), ranking(1, {1: 2, 2: 1}))
    (row,) = pairs.rows()
    assert (row["chosen"], row["chosen_token_ids"], row["prompt_token_ids"]) == ([said("Done. 2")], [], [])


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("aborted", {"finish_reason": event_pb2.FINISH_REASON_ABORTED}),
        ("not_consented", {"consent": event_pb2.Consent(train=False)}),
        ("not_stored", {"consent": event_pb2.Consent(store=False)}),
        ("other_tenant", {"header": event_pb2.EventHeader(tenant="other")}),
        ("other_persona", {"persona": "tutor"}),
    ],
)
def test_one_answer_that_may_not_be_learned_from_spoils_the_pair(
    pairs: Table, reason: str, changes: dict[str, Any]
) -> None:
    pairs.put(answer(1), answer(2, **changes), answer(3), ranking(1, {1: 1, 2: 2, 3: 3}))
    pairs.put(opinion(2, 2, thumb=UP), opinion(3, 2, correction=event_pb2.Correction(text="No.")))
    assert compared(pairs.rows()) == [("ranking", "r-1", "r-3", 2 / 3)]
    assert pairs.left_out() == {reason: 4}


def test_what_is_older_than_the_window_or_about_nothing_known_is_left_out(pairs: Table) -> None:
    old = event_pb2.EventHeader(created_unix_ms=NOW_UNIX_MS - 31 * DAY_MS)
    pairs.put(answer(1), answer(2), opinion(1, 1, thumb=UP), opinion(2, 2, thumb=DOWN, header=old))
    pairs.put(ranking(3, {1: 1, 9: 2}))
    assert pairs.rows() == []
    assert pairs.left_out() == {"no_counterpart": 1, "outside_window": 1, "unknown_response": 1}
