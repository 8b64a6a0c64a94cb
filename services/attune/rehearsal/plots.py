"""The report's plots, as SVG text to be put into a page."""

import io
import math
from collections.abc import Sequence
from typing import Any

from attune.rehearsal.figures import Figures, Moment, PolicyFigures, Proportion

INK, MUTED, RULE = "#1f2933", "#64748b", "#e2e8f0"
CLAIM, UNRESOLVED, GOOD, BEFORE = "#c2410c", "#fdba74", "#0f766e", "#94a3b8"
_WINDOW = 50  # errands behind each point of the curve over time

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "attune",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    "legend.frameon": False,
}


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure without pyplot: no global state, no window."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update(_STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any, title: str) -> str:
    """The drawing alone, scaling with the page, with a title for those who do not see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    drawing = text[text.index("<svg") :]
    head, rest = drawing.split(">", 1)
    sized = " ".join(part for part in head.split() if not part.startswith(("width=", "height=")))
    return f'{sized} role="img"><title>{title}</title>{rest}'


def _percent_axis(axis: Any, top: float = 1.0) -> None:
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axis.set_ylim(0, top)
    axis.tick_params(length=0)


def over_time(figures: Figures) -> str:
    """False claims among the latest answered errands, with trainings as bands and swaps as lines."""
    figure, axis = _figure(9.2, 3.0)
    points = rolling(figures.errands, _WINDOW)
    for training in figures.trainings:
        axis.axvspan(training.began_at, training.ended_at, color="#f1f5f9", lw=0)
        axis.text((training.began_at + training.ended_at) / 2, 0.03, "training", color=MUTED, ha="center", fontsize=9)
    if points:
        axis.plot([at for at, _ in points], [share for _, share in points], color=CLAIM, lw=2)
    for swap in figures.swaps:
        axis.axvline(swap.serving_at, color=GOOD, lw=1.5)
        axis.annotate(
            swap.policy_id, (swap.serving_at, 1.0), xytext=(4, -2), textcoords="offset points", color=GOOD, va="top"
        )
    _percent_axis(axis)
    axis.grid(axis="y")
    axis.set_xlabel("seconds since the start")
    axis.set_ylabel(f"claims, last {_WINDOW} errands")
    return _svg(figure, "False claims in conversations over time")


def rolling(errands: Sequence[Moment], window: int) -> list[tuple[float, float]]:
    """Time and share of claims among the latest `window` errands; nothing before there are that many."""
    points, claims = [], 0
    for index, errand in enumerate(errands):
        claims += errand.claimed
        if index >= window:
            claims -= errands[index - window].claimed
        if index >= window - 1:
            points.append((errand.at, claims / window))
    return points


def claims_by_policy(figures: Figures) -> str:
    """Exact probability as bars, its unresolved part lighter; sampled rates with intervals as points."""
    policies = [policy for policy in figures.policies if policy.exact or policy.claims_heldout]
    figure, axis = _figure(4.5, 3.0)
    for place, policy in enumerate(policies):
        alpha = 1.0 if policy.served else 0.45
        if policy.exact:
            axis.bar(place, policy.exact.claim, 0.55, color=CLAIM, alpha=alpha)
            axis.bar(place, policy.exact.unresolved, 0.55, bottom=policy.exact.claim, color=UNRESOLVED, alpha=alpha)
            axis.annotate(
                f"{100 * policy.exact.counted:.1f}", (place - 0.02, policy.exact.counted), xytext=(-3, 3),
                textcoords="offset points", ha="right", fontweight="bold",
            )  # fmt: skip
        if policy.claims_heldout:
            _point(axis, place + 0.1, policy.claims_heldout, INK)
    _names(axis, policies)
    _percent_axis(axis, 0.8 if all((p.exact.counted if p.exact else 0) < 0.7 for p in policies) else 1.0)
    return _svg(figure, "False-claim probability by policy")


def approval_by_policy(figures: Figures) -> str:
    """Thumbs up with intervals, and the most that wrong thumbs leave room for."""
    policies = [policy for policy in figures.served if policy.thumbs_up.trials]
    figure, axis = _figure(4.5, 3.0)
    for place, policy in enumerate(policies):
        axis.bar(place, policy.thumbs_up.share, 0.55, color=GOOD)
        axis.text(place, 0.04, f"{100 * policy.thumbs_up.share:.0f}", color="white", ha="center", fontweight="bold")
        _point(axis, place, policy.thumbs_up, INK)
    most = 1 - figures.wrong_thumbs_share
    axis.axhline(most, color=MUTED, lw=1, ls=(0, (4, 3)))
    axis.annotate(
        f"more there cannot be: {100 * figures.wrong_thumbs_share:.0f} % of thumbs are wrong",
        (0, most), xycoords=("axes fraction", "data"), xytext=(4, 9), textcoords="offset points",
        color=MUTED, fontsize=9,
    )  # fmt: skip
    _names(axis, policies)
    _percent_axis(axis)
    return _svg(figure, "Approval by policy")


def _point(axis: Any, place: float, proportion: Proportion, colour: str) -> None:
    if math.isnan(proportion.share):
        return
    low, high = proportion.interval
    axis.plot([place, place], [low, high], color=colour, lw=1.2)
    axis.plot(place, proportion.share, "o", color="white", markeredgecolor=colour, ms=5)


def _names(axis: Any, policies: Sequence[PolicyFigures]) -> None:
    axis.set_xticks(
        range(len(policies)), [policy.policy_id + ("" if policy.served else "\nnot served") for policy in policies]
    )
    axis.tick_params(axis="x", colors=INK)
    axis.set_xlim(-0.6, max(1, len(policies) - 1) + 0.6)
    axis.grid(axis="y")


def skills_before_and_after(figures: Figures) -> str:
    """Each skill's exact matches before and after, with intervals."""
    skills = figures.skills
    figure, axis = _figure(9.2, 0.5 * len(skills) + 0.8)
    lowest = 1.0
    for place, skill in enumerate(skills):
        for proportion, offset, colour in ((skill.before, -0.13, BEFORE), (skill.after, 0.13, GOOD)):
            low, high = proportion.interval
            lowest = min(lowest, low)
            axis.plot([low, high], [place + offset] * 2, color=colour, lw=1.5)
            axis.plot(proportion.share, place + offset, "o", color=colour, ms=6)
    for label, colour in (("before", BEFORE), ("after", GOOD)):
        axis.plot([], [], "o", color=colour, label=label)
    axis.set_yticks(range(len(skills)), [skill.skill for skill in skills])
    axis.tick_params(length=0)
    axis.tick_params(axis="y", colors=INK)
    axis.set_ylim(max(1, len(skills)) - 0.5, -0.5)
    axis.set_xlim(max(0.0, math.floor(20 * (lowest - 0.01)) / 20), 1.002)
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axis.grid(axis="x")
    figure.legend(loc="outside upper left", ncols=2)
    return _svg(figure, "Other skills before and after")
