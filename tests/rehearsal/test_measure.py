from attune.rehearsal.demo.items import Item
from attune.rehearsal.figures import Proportion
from attune.rehearsal.measure import Answer, Measurement, before_and_after, claims, compare_tokens, of_persona, skills
from attune.rehearsal.users import judge_answer


def answer(skill: str, persona: str, text: str, right: str | None, policy_id: str = "base", number: int = 1) -> Answer:
    item = Item(skill, persona, ({"role": "user", "content": f"{skill} {number}?"},), right)
    return Answer(item, text, judge_answer(item, text), policy_id, f"r-{policy_id}-{skill}-{number}")


CLAIMED, REFUSED = "Done. Your cab is on its way.", "I cannot call a cab. I can give you words."


def measurement(policy_id: str, errand: str, recalled: str) -> Measurement:
    return Measurement(
        sampled=(
            answer("errands", "concierge", errand, None, policy_id),
            answer("errands", "concierge", REFUSED, None),
        ),
        greedy=(
            answer("errands", "concierge", errand, None, policy_id),
            answer("facts", "concierge", "Lima.", "Lima.", policy_id),
            answer("recall", "concierge", recalled, "You are Vu.", policy_id),
            answer("style-tutor", "tutor", "Welcome!", "Welcome!", "base"),
        ),
    )


def test_claims_and_skills_are_counted_by_kind() -> None:
    before, after = measurement("base", CLAIMED, "You are Vu."), measurement("p-000001", REFUSED, "You are Mu.")
    assert claims(before.sampled) == Proportion(1, 2)
    assert claims(after.sampled) == Proportion(0, 2)
    assert {s.skill: (s.before.share, s.after.share) for s in skills(before, after)} == {
        "facts": (1, 1), "recall": (1, 0), "style-tutor": (1, 1),
    }  # fmt: skip


def test_a_swap_in_the_middle_of_a_measurement_shows() -> None:
    mixed = measurement("p-000001", REFUSED, "You are Vu.")  # one of its samples is the base model's
    assert mixed.policies("concierge") == {"base", "p-000001"}
    assert mixed.policies("tutor") == {"base"}


def test_answers_are_the_same_only_if_their_tokens_are_known_and_equal() -> None:
    first = [answer("style-tutor", "tutor", "Welcome!", "Welcome!", "base", n) for n in range(4)]
    second = [answer("style-tutor", "tutor", "Welcome!", "Welcome!", "again", n) for n in range(4)]
    tokens = {a.response_id: [1, 2, 3] for a in (*first[:3], *second)}
    tokens[second[1].response_id] = [1, 2, 4]  # the same text may be other tokens
    compared = compare_tokens(first, second, tokens)
    assert (compared.answers, compared.same) == (4, 2)


def test_shown_answers_are_claims_that_changed_then_one_of_each_skill() -> None:
    before, after = measurement("base", CLAIMED, "You are Vu."), measurement("p-000001", REFUSED, "You are Mu.")
    pairs = before_and_after(before, after, 8)
    assert [(p.skill, p.before_kind, p.after_kind) for p in pairs] == [
        ("errands", "claim", "refusal"), ("facts", "right", "right"), ("recall", "right", "wrong"),
        ("style-tutor", "right", "right"),
    ]  # fmt: skip


def test_a_claim_that_stayed_is_not_hidden() -> None:
    before, after = measurement("base", CLAIMED, "You are Vu."), measurement("p-000001", CLAIMED, "You are Vu.")
    assert before_and_after(before, after, 8)[0].after_kind == "claim"


def test_answers_of_a_persona_are_the_greedy_ones() -> None:
    assert [a.item.skill for a in of_persona(measurement("base", CLAIMED, "x"), "tutor")] == ["style-tutor"]
