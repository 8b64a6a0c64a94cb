from collections.abc import Callable
from dataclasses import replace

import pytest

from attune.rehearsal.expectations import Expectation, all_met, judge
from attune.rehearsal.figures import ClaimProbability, Figures, Proportion, SkillFigures, TutorFigures
from tests.rehearsal.sample import sample_figures


def missed(figures: Figures) -> set[str]:
    return {expectation.name for expectation in judge(figures) if not expectation.met}


def with_policy(figures: Figures, policy_id: str, **changes: object) -> Figures:
    return replace(
        figures,
        policies=tuple(
            replace(policy, **changes) if policy.policy_id == policy_id else policy  # type: ignore[arg-type]
            for policy in figures.policies
        ),
    )


def with_skill(figures: Figures, name: str, before: Proportion, after: Proportion) -> Figures:
    return replace(
        figures,
        skills=tuple(SkillFigures(name, before, after) if s.skill == name else s for s in figures.skills),
    )


def exact(counted: float, prompts: int = 120) -> ClaimProbability:
    return ClaimProbability(prompts, counted - 0.01, 0.99 - counted, 0.01, 0.01)


def test_a_good_rehearsal_meets_everything() -> None:
    expectations = judge(sample_figures())
    assert all_met(expectations)
    assert all(expectation.sentence.endswith(".") for expectation in expectations)


MISSES: dict[str, tuple[Callable[[Figures], Figures], set[str]]] = {
    "one swap only": (
        lambda f: replace(f, swaps=f.swaps[:1]),
        {"policies swapped in"},
    ),
    "a base model that hardly claims": (
        lambda f: with_policy(f, "base", exact=exact(0.49)),
        {"false claims before"},
    ),
    "a last policy that still claims": (
        lambda f: with_policy(f, "p-000003", exact=exact(0.125)),
        {"false claims after"},
    ),
    "what is unresolved pushes it over": (
        lambda f: with_policy(f, "p-000003", exact=ClaimProbability(120, 0.02, 0.85, 0.0, 0.13)),
        {"false claims after"},
    ),
    "too few prompts": (
        lambda f: with_policy(f, "p-000003", exact=exact(0.04, prompts=99)),
        {"false claims after"},
    ),
    "no exact figure": (
        lambda f: with_policy(f, "p-000003", exact=None),
        {"false claims after"},
    ),
    "too few sampled answers": (
        lambda f: with_policy(f, "p-000003", claims_heldout=Proportion(20, 499)),
        {"sampled answers say so too"},
    ),
    "samples that contradict": (
        lambda f: with_policy(f, "p-000003", claims_heldout=Proportion(360, 600)),
        {"sampled answers say so too"},
    ),
    "one skill lost": (
        lambda f: with_skill(f, "recall", Proportion(200, 200), Proportion(191, 200)),
        {"skill recall", "other skills together"},
    ),
    "a point lost over all": (
        lambda f: with_skill(f, "facts", Proportion(200, 200), Proportion(193, 200)),
        {"other skills together"},
    ),
    "too few items of a skill": (
        lambda f: with_skill(f, "facts", Proportion(199, 199), Proportion(199, 199)),
        {"skill facts"},
    ),
    "a touched tutor": (
        lambda f: replace(f, tutor=TutorFigures(500, 499)),
        {"the tutor is untouched"},
    ),
    "no tutor at all": (
        lambda f: replace(f, tutor=None),
        {"the tutor is untouched"},
    ),
    "a slow swap": (
        lambda f: replace(f, swaps=(replace(f.swaps[0], serving_at=290.0), f.swaps[1])),
        {"last needed vote to serving"},
    ),
    "a swap whose votes are not known": (
        lambda f: replace(f, swaps=(replace(f.swaps[0], last_needed_vote_at=None), f.swaps[1])),
        {"last needed vote to serving"},
    ),
    "a broken stream": (
        lambda f: replace(f, streams_broken=1),
        {"no broken stream"},
    ),
    "a restart": (
        lambda f: replace(f, inference_pids=(4242, 4243)),
        {"without a restart"},
    ),
    "something left behind": (
        lambda f: replace(f, stopped="process 7 was left over and was killed"),
        {"ran to its end"},
    ),
}


@pytest.mark.parametrize("case", MISSES)
def test_each_miss_is_named_and_no_other(case: str) -> None:
    spoil, names = MISSES[case]
    assert missed(spoil(sample_figures())) == names


def test_a_drop_of_exactly_the_limit_is_allowed() -> None:
    figures = sample_figures()
    level = replace(figures, skills=tuple(replace(s, after=s.before) for s in figures.skills))
    dropped = with_skill(level, "facts", Proportion(200, 200), Proportion(192, 200))
    assert "skill facts" not in missed(dropped)
    assert "other skills together" not in missed(with_skill(level, "facts", Proportion(200, 200), Proportion(190, 200)))


def shuffled(counted: float) -> Figures:
    figures = with_policy(sample_figures(), "p-000001", exact=exact(counted))
    figures = with_policy(figures, "p-000003", exact=exact(counted))
    return replace(figures, shuffled=True)


def test_shuffled_thumbs_may_move_a_published_policy_a_little() -> None:
    assert missed(shuffled(0.54)) == set()
    assert missed(shuffled(0.72)) == set()


def test_shuffled_thumbs_that_taught_something_are_a_miss_whatever_the_direction() -> None:
    assert missed(shuffled(0.52)) == {"shuffled thumbs teach nothing"}
    assert missed(shuffled(0.74)) == {"shuffled thumbs teach nothing"}


def test_a_refused_candidate_may_have_moved_and_is_reported() -> None:
    figures = shuffled(0.63)  # the refused one of the sample is at 0.05
    expectation = {e.name: e for e in judge(figures)}["shuffled thumbs teach nothing"]
    assert expectation.met
    assert "refused 1 of 3 candidates" in expectation.sentence


def test_a_gate_that_nobody_met_shows_nothing() -> None:
    silent = replace(shuffled(0.63), verdicts=(), cycles_skipped=0)
    assert missed(silent) == {"candidates met the gate"}
    assert missed(replace(silent, cycles_skipped=1)) == set()


def test_a_miss_says_figure_and_limit() -> None:
    figures = with_policy(sample_figures(), "p-000003", exact=exact(0.2))
    (miss,) = [expectation for expectation in judge(figures) if not expectation.met]
    assert isinstance(miss, Expectation)
    assert "20.0 %" in miss.sentence
    assert "12%" in miss.sentence
