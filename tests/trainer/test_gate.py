import math
from dataclasses import replace

import pytest

from attune.trainer.gate import Limits, Metrics, SkillFigures, judge

LIMITS = Limits(
    min_train=50,
    min_heldout=20,
    min_share_of_label=0.05,
    max_liked_drop_nats=0.05,
    max_skill_drop=0.03,
    max_skills_drop=0.01,
)
GOOD = Metrics(
    train_examples=300,
    train_least_label_share=0.4,
    heldout_examples=80,
    heldout_users=12,
    heldout_least_label=30,
    liked_logprob_serving=-0.3,
    liked_logprob=-0.28,
    disliked_logprob_serving=-0.4,
    disliked_logprob=-0.6,
    liked_change_nats=0.02,
    gain_nats=0.8,
    gain_lower_nats=0.4,
    gain_lower_without_one_user_nats=0.3,
    kl_nats=0.02,
    skills={
        "facts": SkillFigures(200, base=0.99, serving=0.98, candidate=0.985),
        "arithmetic": SkillFigures(200, base=0.95, serving=0.95, candidate=0.945),
    },
)


def failed(metrics: Metrics) -> set[str]:
    return {check.name for check in judge("p-000001", metrics, LIMITS, 0).checks if not check.passed}


def with_skill(name: str, **figures: float) -> Metrics:
    return replace(GOOD, skills={**GOOD.skills, name: replace(GOOD.skills[name], **figures)})


def test_a_good_candidate_passes_with_every_figure_in_its_verdict() -> None:
    verdict = judge("p-000007", GOOD, LIMITS, 12)
    assert verdict.passed
    assert (verdict.policy_id, verdict.created_unix_ms) == ("p-000007", 12)
    assert [check.name for check in verdict.checks] == [
        "train_examples",
        "heldout_examples",
        "label_share",
        "heldout_labels",
        "preference",
        "no_single_user",
        "liked_likelihood",
        "skill:facts",
        "skill:arithmetic",
        "skills",
        "kl",
    ]
    reasons = {check.name: check.reason for check in verdict.checks}
    assert reasons["preference"].startswith("liked answers gained 0.80 nats over disliked ones on held-out users")
    assert "94.5% of 200 prompts answered right, serving policy 95.0%" in reasons["skill:arithmetic"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"train_examples": 49}, "train_examples"),
        ({"heldout_examples": 19}, "heldout_examples"),
        ({"train_least_label_share": 0.04}, "label_share"),
        ({"heldout_least_label": 0}, "heldout_labels"),
        ({"gain_lower_nats": 0.0}, "preference"),
        ({"gain_lower_nats": math.nan}, "preference"),
        ({"gain_lower_without_one_user_nats": -0.01}, "no_single_user"),
        ({"gain_lower_without_one_user_nats": math.nan}, "no_single_user"),
        ({"liked_change_nats": -0.06}, "liked_likelihood"),
        ({"liked_change_nats": math.nan}, "liked_likelihood"),
    ],
)
def test_each_figure_alone_refuses(change: dict[str, float], name: str) -> None:
    assert failed(replace(GOOD, **change)) == {name}  # type: ignore[arg-type]


def test_one_skill_lost_is_refused_however_large_the_gain() -> None:
    assert failed(replace(with_skill("arithmetic", candidate=0.60), gain_lower_nats=50.0)) == {
        "skill:arithmetic",
        "skills",
    }


def test_a_little_of_each_skill_is_refused_by_their_sum() -> None:
    both = {name: replace(figures, candidate=figures.serving - 0.02) for name, figures in GOOD.skills.items()}
    assert failed(replace(GOOD, skills=both)) == {"skills"}


def test_small_losses_do_not_add_up_from_policy_to_policy() -> None:
    """The serving policy lost 2.5 points to the base already; another 2.5 would be within its limit, not the base's."""
    assert "skill:arithmetic" in failed(with_skill("arithmetic", base=0.95, serving=0.925, candidate=0.90))


def test_no_worse_than_what_serves_is_never_refused_for_a_skill() -> None:
    assert "skill:arithmetic" not in failed(with_skill("arithmetic", base=0.95, serving=0.80, candidate=0.80))


def test_figures_survive_the_manifest() -> None:
    assert Metrics.from_flat(GOOD.to_flat()) == GOOD
    unknown = replace(GOOD, gain_lower_nats=math.nan)
    assert "gain_lower_nats" not in unknown.to_flat()
    assert math.isnan(Metrics.from_flat(unknown.to_flat()).gain_lower_nats)


def test_a_skill_may_have_dots_in_its_name() -> None:
    dotted = replace(GOOD, skills={"v1.2 candidate.base": GOOD.skills["facts"]})
    assert Metrics.from_flat(dotted.to_flat()) == dotted
