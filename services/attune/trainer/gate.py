"""The gate: whether a candidate may meet users, from its figures alone."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from attune.registry.verdict import Check, Verdict


@dataclass(frozen=True)
class SkillFigures:
    """Shares of a skill's regression prompts that are answered right."""

    items: int
    base: float
    serving: float
    candidate: float


@dataclass(frozen=True)
class Metrics:
    """What is known of a candidate, against the policy that serves now. NaN: could not be measured.

    Log-probabilities are nats a token, means over all tokens of held-out liked or disliked answers. `liked_change_nats`
    is the mean change by answer, nats a token, without the lowest quarter. Gains are nats an answer: how much more
    than the serving policy the candidate prefers liked answers to disliked ones.
    """

    train_examples: int
    train_least_label_share: float
    heldout_examples: int
    heldout_users: int
    heldout_least_label: int
    liked_logprob_serving: float
    liked_logprob: float
    disliked_logprob_serving: float
    disliked_logprob: float
    liked_change_nats: float
    gain_nats: float
    gain_lower_nats: float
    gain_lower_without_one_user_nats: float
    kl_nats: float
    skills: Mapping[str, SkillFigures] = field(default_factory=dict)

    def to_flat(self) -> dict[str, float]:
        """As a manifest and MLflow keep it: names to numbers, without those that are not known."""
        flat = {name: float(getattr(self, name)) for name in _PLAIN}
        for skill, figures in self.skills.items():
            flat |= {f"skills.{skill}.{each.name}": float(getattr(figures, each.name)) for each in fields(figures)}
        return {name: value for name, value in flat.items() if math.isfinite(value)}

    def skill_shares(self, policy: Literal["base", "serving", "candidate"]) -> dict[str, float]:
        return {skill: getattr(figures, policy) for skill, figures in self.skills.items()}

    @classmethod
    def from_flat(cls, flat: Mapping[str, float]) -> "Metrics":
        """The inverse of to_flat."""
        plain: dict[str, Any] = {name: flat.get(name, math.nan) for name in _PLAIN} | {
            name: int(flat[name]) for name in _COUNTS
        }
        suffix = ".candidate"
        names = [
            name[len("skills.") : -len(suffix)] for name in flat if name.startswith("skills.") and name.endswith(suffix)
        ]
        skills = {
            skill: SkillFigures(
                items=int(flat[f"skills.{skill}.items"]),
                **{part: flat[f"skills.{skill}.{part}"] for part in ("base", "serving", "candidate")},
            )
            for skill in names
        }
        return cls(**plain, skills=skills)


_PLAIN = tuple(each.name for each in fields(Metrics) if each.name != "skills")
_COUNTS = tuple(each.name for each in fields(Metrics) if each.type is int)


@dataclass(frozen=True)
class Limits:
    """What a candidate must show."""

    min_train: int
    min_heldout: int
    min_share_of_label: float
    max_liked_drop_nats: float
    max_skill_drop: float
    max_skills_drop: float


def judge(policy_id: str, metrics: Metrics, limits: Limits, created_unix_ms: int) -> Verdict:
    """Says whether a candidate may go live, and every reason why not."""
    checks = tuple(_checks(metrics, limits))
    return Verdict(policy_id, all(check.passed for check in checks), checks, created_unix_ms)


def check_data(train_examples: int, least_label_share: float, heldout_examples: int, limits: Limits) -> list[Check]:
    """What can be said before training."""
    return [
        _check(
            "train_examples",
            train_examples,
            limits.min_train,
            "{figure:.0f} examples to train on; at least {limit:.0f} are needed",
        ),
        _check(
            "heldout_examples",
            heldout_examples,
            limits.min_heldout,
            "{figure:.0f} held-out examples; at least {limit:.0f} are needed",
        ),
        _check(
            "label_share",
            least_label_share,
            limits.min_share_of_label,
            "the rarer thumb makes up {figure:.1%} of the examples; at least {limit:.1%} is needed",
        ),
    ]


def _checks(metrics: Metrics, limits: Limits) -> Iterator[Check]:
    yield from check_data(metrics.train_examples, metrics.train_least_label_share, metrics.heldout_examples, limits)
    yield _check(
        "heldout_labels",
        metrics.heldout_least_label,
        1,
        "{figure:.0f} held-out examples have the rarer thumb; at least {limit:.0f} is needed",
    )
    yield _check(
        "preference",
        metrics.gain_lower_nats,
        0,
        f"liked answers gained {metrics.gain_nats:.2f} nats over disliked ones on held-out users, "
        "lower bound {figure:.2f}; it must be above 0",
        above=True,
    )
    yield _check(
        "no_single_user",
        metrics.gain_lower_without_one_user_nats,
        0,
        "without the user that speaks most for the candidate the lower bound is {figure:.2f} nats; it must be above 0",
        above=True,
    )
    yield _check(
        "liked_likelihood",
        metrics.liked_change_nats,
        -limits.max_liked_drop_nats,
        "liked answers' log-probability changed by {figure:+.3f} nats a token; at most {limit:+.3f} may be lost",
    )
    for skill, figures in metrics.skills.items():
        yield _skill(f"skill:{skill}", skill, figures, limits.max_skill_drop)
    if metrics.skills:
        yield _skill("skills", "all skills together", _together(metrics.skills), limits.max_skills_drop)
    yield Check(
        "kl",
        True,
        metrics.kl_nats,
        math.inf,
        f"{metrics.kl_nats:.3f} nats a token from the serving policy (for the record)",
    )


def _skill(name: str, label: str, figures: SkillFigures, most_drop: float) -> Check:
    """A candidate may be worse by `most_drop` than the better of the base and the serving policy.

    The base counts so that small losses do not add up from policy to policy. A candidate that is no worse than what
    serves is let through all the same: refusing it would keep the worse one.
    """
    limit = (
        min(figures.serving, figures.base - most_drop)
        if figures.base > figures.serving
        else figures.serving - most_drop
    )
    passed = figures.candidate >= limit - 1e-9
    return Check(
        name,
        passed,
        figures.candidate,
        limit,
        f"{label}: {figures.candidate:.1%} of {figures.items} prompts answered right, "
        f"serving policy {figures.serving:.1%}, base {figures.base:.1%}; at least {limit:.1%} is needed",
    )


def _together(skills: Mapping[str, SkillFigures]) -> SkillFigures:
    """Every skill counts alike, however many prompts it has."""
    count = len(skills)
    return SkillFigures(
        items=sum(figures.items for figures in skills.values()),
        base=sum(figures.base for figures in skills.values()) / count,
        serving=sum(figures.serving for figures in skills.values()) / count,
        candidate=sum(figures.candidate for figures in skills.values()) / count,
    )


def _check(name: str, figure: float, limit: float, sentence: str, *, above: bool = False) -> Check:
    """Passes when the figure reaches the limit, or is above it; NaN does neither."""
    passed = figure > limit if above else figure >= limit
    return Check(name, passed, figure, limit, sentence.format(figure=figure, limit=limit))
