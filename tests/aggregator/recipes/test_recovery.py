"""What the recipe `recovery` takes for an answer that put something right."""

from typing import Any

import pytest

from attune.v1 import event_pb2
from tests.aggregator.plant import Plant
from tests.aggregator.recipes.conversation import DOWN, UP, Table, answer, assistant, opinion, said, tool, user
from tests.lake.events import NOW_UNIX_MS


@pytest.fixture
def recovery(plant: Plant) -> Table:
    return Table(plant, "recovery")


def turn(number: int, **changes: Any) -> event_pb2.ResponseEvent:
    """Of one conversation, a turn each."""
    event = answer(number, f"Question {number}", **changes)
    event.conversation_id, event.turn = "c", number
    return event


def answered(recovery: Table, content: str, **changes: Any) -> dict[str, Any] | None:
    """The row of a liked answer to this tool message."""
    recovery.put(answer(1, [user("A cab!"), assistant("..."), tool(content)], **changes), opinion(1, 1, thumb=UP))
    rows = recovery.rows()
    return rows[0] if rows else None


def test_a_liked_answer_after_a_disliked_one_recovers(recovery: Table) -> None:
    recovery.put(turn(1), turn(2), opinion(1, 1, thumb=DOWN), opinion(2, 2, rating=4, end_user="ann"))
    (row,) = recovery.rows()
    assert (row["label"], row["response_ids"], row["weight"]) == ("down_vote", ["r-2", "r-1"], 1.0)
    assert (row["completion"], row["failed"]) == ([said("Done. 2")], [said("Done. 1")])
    assert row["feedback_ids"] == ["feedback-2", "feedback-1"]
    assert row["people"] == ["ann", "user-1", "user-2"]
    assert (row["output_token_ids"], row["output_logprobs"]) == ([4_000_000_000, 5], [-0.5, -0.25])
    assert (row["prompt_token_ids"], row["turn"], row["created_unix_ms"]) == ([1, 2, 2], 2, NOW_UNIX_MS + 1002)
    assert (row["policy_id"], row["persona_version"]) == ("base", "v1")
    assert recovery.left_out() == {"disliked": 1}


def test_answers_that_nobody_judged_may_lie_between_but_a_liked_one_ends_the_trouble(recovery: Table) -> None:
    recovery.put(*[turn(n) for n in range(1, 6)])
    recovery.put(opinion(1, 1, thumb=DOWN), opinion(2, 4, thumb=UP), opinion(3, 5, thumb=UP))
    assert [row["response_id"] for row in recovery.rows()] == ["r-4"]
    assert recovery.left_out() == {"disliked": 1, "no_trouble": 1}


def test_another_conversation_is_no_trouble_of_this_one(recovery: Table) -> None:
    recovery.put(answer(1), answer(2), opinion(1, 1, thumb=DOWN), opinion(2, 2, thumb=UP))
    assert recovery.rows() == []
    assert recovery.left_out() == {"disliked": 1, "no_trouble": 1}


@pytest.mark.parametrize(
    "content",
    [
        '{"error": "no cab"}',
        "Error: no cab",
        "the request timed out",
        '{"ok": false}',
        '{"success" : false}',
        '{"status": "FAILED"}',
    ],
)
def test_a_liked_answer_to_a_tools_error_recovers(recovery: Table, content: str) -> None:
    row = answered(recovery, content)
    assert row is not None
    assert (row["label"], row["failed"], row["response_ids"]) == ("tool_error", [], ["r-1"])
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    "content",
    ['{"booked": true}', '{"error": null, "booked": true}', '{"errors": []}', "terrorism museum", '{"ok": true}'],
)
def test_a_tools_success_is_no_trouble(recovery: Table, content: str) -> None:
    assert answered(recovery, content) is None


def test_one_of_several_tools_that_fails_is_enough_and_an_error_of_an_earlier_turn_is_not(recovery: Table) -> None:
    recovery.put(answer(1, [user("A cab!"), assistant("..."), tool("error"), tool("fine")]), opinion(1, 1, thumb=UP))
    earlier = [user("A cab!"), assistant("..."), tool("error"), assistant("Sorry."), user("Thanks. And an error?")]
    recovery.put(answer(2, earlier), opinion(2, 2, thumb=UP))
    assert [row["response_id"] for row in recovery.rows()] == ["r-1"]


def test_what_is_said_for_and_against_is_counted(recovery: Table) -> None:
    recovery.put(turn(1), turn(2), opinion(1, 1, thumb=DOWN), opinion(2, 1, thumb=UP, end_user="bob"))
    recovery.put(opinion(3, 2, thumb=UP), opinion(4, 2, rating=1), opinion(5, 2, rating=3, end_user="bob"))
    assert recovery.rows() == []
    assert recovery.left_out() == {"tie": 2}


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("aborted", {"finish_reason": event_pb2.FINISH_REASON_ABORTED}),
        ("not_consented", {"consent": event_pb2.Consent(train=False)}),
        ("not_served", {"source": event_pb2.SOURCE_IMPORTED}),
        ("other_persona", {"persona": "tutor"}),
    ],
)
def test_what_may_not_be_learned_from_is_left_out(recovery: Table, reason: str, changes: dict[str, Any]) -> None:
    assert answered(recovery, "error", **changes) is None
    assert recovery.left_out() == {reason: 1}
