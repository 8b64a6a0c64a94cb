"""What the recipe `rewards` makes a score of."""

from typing import Any

import pytest

from attune.v1 import event_pb2
from tests.aggregator.plant import Plant
from tests.aggregator.recipes.conversation import DAY_MS, Table, answer, imported, opinion, said
from tests.lake.events import NOW_UNIX_MS

WEIGHTS = {"implicit.copied": 0.5, "implicit.regenerated": -0.25, "outcome.solved": 1.0, "outcome.stars": 0.125}
COPIED, REGENERATED, EDITED = (
    {"implicit": event_pb2.IMPLICIT_SIGNAL_COPIED, "name": "copied"},
    {"implicit": event_pb2.IMPLICIT_SIGNAL_REGENERATED, "name": "regenerated"},
    {"implicit": event_pb2.IMPLICIT_SIGNAL_EDITED, "name": "edited"},
)


def outcome(name: str, value: bool | float) -> dict[str, Any]:
    field = "flag" if isinstance(value, bool) else "number"
    return {"outcome": event_pb2.Outcome(name=name, **{field: value}), "name": name}  # type: ignore[arg-type]


class Rewards(Table):
    def rows(self, **how: Any) -> list[dict[str, Any]]:
        return super().rows(arguments=WEIGHTS, **how)

    def left_out(self, **how: Any) -> dict[str, int]:
        return super().left_out(arguments=WEIGHTS, **how)

    def scores(self) -> dict[str, float]:
        return {row["response_id"]: row["score"] for row in self.rows()}


@pytest.fixture
def rewards(plant: Plant) -> Rewards:
    return Rewards(plant, "rewards")


def test_a_score_is_the_sum_of_weights_times_values(rewards: Rewards) -> None:
    rewards.put(answer(1), opinion(1, 1, **REGENERATED), opinion(2, 1, **outcome("stars", 0.5)))
    (row,) = rewards.rows()
    assert row["score"] == -0.25 + 0.125 * 0.5
    assert (row["label"], row["weight"], row["completion"]) == ("bad", 1.0, [said("Done. 1")])
    assert row["parts"] == [
        {"name": "implicit.regenerated", "value": 1.0, "weight": -0.25, "feedback_id": "feedback-1"},
        {"name": "outcome.stars", "value": 0.5, "weight": 0.125, "feedback_id": "feedback-2"},
    ]
    assert (row["feedback_ids"], row["people"]) == (["feedback-1", "feedback-2"], ["user-1"])
    assert (row["output_token_ids"], row["output_logprobs"]) == ([4_000_000_000, 5], [-0.5, -0.25])
    assert (row["policy_id"], row["persona_version"], row["created_unix_ms"]) == ("base", "v1", NOW_UNIX_MS + 1002)


def test_a_false_outcome_counts_the_other_way_and_scores_stay_within_one(rewards: Rewards) -> None:
    rewards.put(*[answer(n) for n in range(1, 6)])
    rewards.put(opinion(1, 1, **outcome("solved", True)), opinion(2, 1, **COPIED))
    rewards.put(opinion(3, 2, **outcome("solved", False)), opinion(4, 2, **REGENERATED))
    rewards.put(opinion(5, 3, **outcome("stars", 7.0)), opinion(6, 4, **outcome("stars", -7.0)))
    rewards.put(opinion(7, 5, **COPIED), opinion(8, 5, **REGENERATED), opinion(9, 5, end_user="bob", **REGENERATED))
    assert rewards.scores() == {"r-1": 1.0, "r-2": -1.0, "r-3": 0.125, "r-4": -0.125, "r-5": 0.0}
    assert [row["label"] for row in rewards.rows()] == ["good", "bad", "good", "bad", "even"]


def test_sums_of_tenths_do_not_depend_on_their_order(rewards: Rewards) -> None:
    weights = {f"outcome.o{n}": n / 10 for n in range(1, 4)}
    rewards.put(answer(1), *[opinion(n, 1, **outcome(f"o{n}", True)) for n in (3, 1, 2)])
    (row,) = Table.rows(rewards, arguments=weights)
    assert row["score"] == 0.6


def test_an_outcome_of_a_conversation_is_one_of_its_responses_before(rewards: Rewards) -> None:
    late = event_pb2.EventHeader(created_unix_ms=NOW_UNIX_MS + 5000)
    conversation = [answer(1), answer(2), answer(3, header=late), answer(4)]
    for event in conversation[:3]:
        event.conversation_id = "c"
    solved = opinion(1, 1, **outcome("solved", True))
    solved.response_id = solved.persona = ""
    solved.conversation_id = "c"
    rewards.put(*conversation, solved)
    assert rewards.scores() == {"r-1": 1.0, "r-2": 1.0}


def test_an_outcome_of_an_unknown_conversation_waits(rewards: Rewards) -> None:
    solved = opinion(1, 1, **outcome("solved", True))
    solved.response_id, solved.conversation_id = "", "nowhere"
    rewards.put(answer(1), solved)
    assert rewards.left_out() == {"unknown_response": 1}


def test_a_revised_outcome_replaces_the_first_and_a_retracted_signal_is_gone(rewards: Rewards) -> None:
    rewards.put(
        answer(1), opinion(2, 1, revision=1, **outcome("solved", False)), opinion(1, 1, **outcome("solved", True))
    )
    rewards.put(answer(2), opinion(3, 2, **COPIED), opinion(4, 2, retracted=True, revision=1, **COPIED))
    assert rewards.scores() == {"r-1": -1.0}
    assert rewards.left_out() == {"retracted": 1}


def test_a_signal_without_a_weight_says_nothing(rewards: Rewards) -> None:
    rewards.put(answer(1), opinion(1, 1, **EDITED), opinion(2, 1, **outcome("unheard_of", True)))
    assert rewards.rows() == []
    assert rewards.left_out() == {"no_weight": 2}


def test_other_weights_make_another_dataset(plant: Plant, rewards: Rewards) -> None:
    rewards.put(answer(1), opinion(1, 1, **COPIED))
    rewards.rows()
    made = [plant.build(recipe="rewards", arguments={"implicit.copied": weight}) for weight in (0.5, 0.25)]
    assert made[0].manifest.dataset_id != made[1].manifest.dataset_id
    assert made[1].manifest.settings["arguments"] == {"implicit.copied": 0.25}


def test_imported_answers_have_scores_too(rewards: Rewards) -> None:
    rewards.put(imported(1), opinion(1, 1, **COPIED))
    (row,) = rewards.rows()
    assert (row["score"], row["output_token_ids"]) == (0.5, [])


@pytest.mark.parametrize(
    ("reason", "changes", "signal"),
    [
        ("aborted", {"finish_reason": event_pb2.FINISH_REASON_ABORTED}, {}),
        ("not_consented", {"consent": event_pb2.Consent(train=False)}, {}),
        ("other_persona", {"persona": "tutor"}, {}),
        ("outside_window", {}, {"header": event_pb2.EventHeader(created_unix_ms=NOW_UNIX_MS - 31 * DAY_MS)}),
    ],
)
def test_what_may_not_be_learned_from_is_left_out(
    rewards: Rewards, reason: str, changes: dict[str, Any], signal: dict[str, Any]
) -> None:
    rewards.put(answer(1, **changes), opinion(1, 1, **COPIED, **signal))
    assert rewards.rows() == []
    assert rewards.left_out() == {reason: 1}
