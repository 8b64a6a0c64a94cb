import pytest

from attune.errors import FailedPrecondition
from attune.personas.persona import Persona
from attune.registry.rollouts import RolloutEntry
from attune.rollout.controller import before, decide, roll_back, serving

PERSONA = Persona(name="concierge", system_prompt="You are a concierge.")


def history_of(*policies: str) -> list[RolloutEntry]:
    return [
        RolloutEntry(number, "default", "concierge", ((policy_id, 1.0),), "gate", "", number)
        for number, policy_id in enumerate(policies, start=1)
    ]


def test_the_first_policy_that_passed_gets_all_traffic() -> None:
    entry = decide(PERSONA, [], ["p-000001"], 17)
    assert entry is not None
    assert (entry.number, entry.shares, entry.author, entry.created_unix_ms) == (1, (("p-000001", 1.0),), "gate", 17)


def test_of_several_candidates_the_newest_is_promoted() -> None:
    entry = decide(PERSONA, history_of("p-000001"), ["p-000002", "p-000010", "p-000009"], 0)
    assert entry is not None
    assert (entry.number, entry.main_policy_id) == (2, "p-000010")


@pytest.mark.parametrize("candidates", [[], ["p-000001"], ["p-000001", "p-000002"]])
def test_nothing_new_means_no_entry(candidates: list[str]) -> None:
    assert decide(PERSONA, history_of("p-000001", "p-000002"), candidates, 0) is None


def test_a_policy_that_was_rolled_back_stays_back() -> None:
    history = history_of("p-000001", "p-000002", "base")
    assert decide(PERSONA, history, ["p-000001", "p-000002"], 0) is None
    entry = decide(PERSONA, history, ["p-000001", "p-000002", "p-000003"], 0)
    assert entry is not None
    assert (entry.number, entry.main_policy_id) == (4, "p-000003")


def test_without_entries_the_base_model_serves() -> None:
    assert serving([]) == (("base", 1.0),)


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        (["p-000001"], "base"),
        (["p-000001", "p-000002"], "p-000001"),
        (["p-000001", "p-000002", "p-000001"], "base"),
        (["p-000001", "p-000002", "p-000001", "p-000003"], "p-000001"),
        (["p-000001", "base", "p-000002"], "base"),
        (["p-000001", "p-000002", "p-000003", "p-000001", "p-000003"], "p-000001"),
    ],
)
def test_going_back_undoes_and_never_returns_to_what_was_given_up(policies: list[str], expected: str) -> None:
    assert before(history_of(*policies)) == expected


@pytest.mark.parametrize("policies", [[], ["p-000001", "base"]])
def test_there_is_nothing_before_the_base_model(policies: list[str]) -> None:
    with pytest.raises(FailedPrecondition):
        before(history_of(*policies))


@pytest.mark.parametrize(("policies", "target"), [([], "base"), (["p-000001"], "p-000001")])
def test_what_serves_already_cannot_be_gone_back_to(policies: list[str], target: str) -> None:
    with pytest.raises(FailedPrecondition, match="already"):
        roll_back(PERSONA, history_of(*policies), target, "", 0)


def test_going_back_is_a_new_entry_by_the_operator() -> None:
    entry = roll_back(PERSONA, history_of("p-000001", "p-000002"), "p-000001", "too chatty", 23)
    assert (entry.number, entry.shares, entry.author, entry.reason, entry.created_unix_ms) == (
        3,
        (("p-000001", 1.0),),
        "operator",
        "too chatty",
        23,
    )
