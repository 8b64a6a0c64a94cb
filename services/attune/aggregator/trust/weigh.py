"""What each row of a dataset weighs: what the recipe gave it, times a factor of each step that changes it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from attune.aggregator.trust.caps import level, sums
from attune.aggregator.trust.controls import PRIOR, trust_in
from attune.aggregator.trust.coordination import find_alike
from attune.aggregator.trust.rows import Floats, Ints, Keys, Rows, join, key_of
from attune.aggregator.trust.standing import NOBODY, Standing
from attune.settings import TrustSettings

STEPS = (
    "control_questions",
    "reviewers_agreement",
    "conversation_cap",
    "person_in_cluster_cap",
    "coordinated",
    "cluster_cap",
    "person_cap",
)
"""In this order. The cap on persons is last, so that it holds of the weights that come out."""

WEIGHED_BY = pa.list_(
    pa.struct([("step", pa.string()), ("factor", pa.float64()), ("found", pa.float64()), ("limit", pa.float64())])
)
_DECIMALS = 6  # so that rounding errors of sums are no part of a dataset


@dataclass(frozen=True)
class Step:
    """The rows that one step changed, in order: each one's factor, what was found, and what would have been enough."""

    name: str
    rows: Ints
    factors: Floats
    found: Floats
    limits: Floats


@dataclass(frozen=True)
class Weights:
    """Of each row, found by the key of its example_id, what it weighs and why."""

    keys: Keys
    weights: Floats
    steps: tuple[Step, ...]

    def changed(self) -> dict[str, int]:
        """How many rows each step changed."""
        return {step.name: len(step.rows) for step in self.steps}

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The same rows with `weight` and `weighed_by` as they are to be."""
        keys = np.array([key_of(each) for each in batch.column("example_id").to_pylist()], np.uint64)
        at = np.searchsorted(self.keys, keys)
        reasons: list[list[dict[str, object]]] = [[] for _ in keys]
        for step in self.steps:
            place = np.searchsorted(step.rows, at)
            for number in np.flatnonzero(np.append(step.rows, -1)[place] == at):
                here = place[number]
                reasons[number].append(
                    {
                        "step": step.name,
                        "factor": round(float(step.factors[here]), _DECIMALS),
                        "found": round(float(step.found[here]), _DECIMALS),
                        "limit": round(float(step.limits[here]), _DECIMALS),
                    }
                )
        columns = {"weight": pa.array(self.weights[at]), "weighed_by": pa.array(reasons, WEIGHED_BY)}
        for name, values in columns.items():
            batch = batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), values)
        return batch


def weigh(rows: Rows, rules: TrustSettings, controls: Standing = NOBODY, agreement: Standing = NOBODY) -> Weights:
    """Each step's factor is at most 1 and is taken of the weights that the steps before it left."""
    weights = rows.weights.copy()
    steps = []
    if rules.enabled:
        for name, find in zip(STEPS, _finders(rows, rules, controls, agreement), strict=True):
            found = find(weights)
            if found is not None:
                step = _step(name, *found)
                weights[step.rows] *= step.factors
                steps.append(step)
    changed = weights != rows.weights
    return Weights(rows.keys, np.where(changed, np.round(weights, _DECIMALS), weights), tuple(steps))


_Found = tuple[Floats, Floats, Floats] | None


def _finders(
    rows: Rows, rules: TrustSettings, controls: Standing, agreement: Standing
) -> Iterator[Callable[[Floats], _Found]]:
    """Of each of STEPS: from the weights so far to each row's factor, what was found, and the limit."""
    in_conversation = np.flatnonzero(rows.conversations >= 0)
    conversations = np.stack([in_conversation, rows.conversations[in_conversation]], axis=1)
    yield lambda _: _trusted(rows, controls)
    yield lambda _: _trusted(rows, agreement) if rules.reviewers_agreement else None
    yield lambda weights: _capped(weights, conversations, rules.conversation_weight)
    yield lambda weights: _capped(weights, _people_in_clusters(rows), rules.person_in_cluster_weight)
    yield lambda _: _alike(rows, rules)
    yield lambda weights: _capped(weights, rows.about, rules.cluster_share * float(weights.sum()))
    yield lambda weights: _people_capped(weights, rows, rules.person_times)


def _step(name: str, factors: Floats, found: Floats, limits: Floats) -> Step:
    rows = np.flatnonzero(factors < 1 - 10**-_DECIMALS)
    return Step(name, rows, factors[rows], found[rows], limits[rows])


def _trusted(rows: Rows, standing: Standing) -> _Found:
    """By the least trusted of those who gave it."""
    accuracies = standing.of(rows.people)[rows.given[:, 1]]
    found = np.full(len(rows), np.inf)
    np.minimum.at(found, rows.given[:, 0], accuracies)
    return trust_in(found), found, np.full(len(rows), PRIOR)


def _capped(weights: Floats, groups: Ints, cap: float) -> _Found:
    """A row that is in several groups goes by the heaviest. `groups` are pairs of a row and a group."""
    row, group = groups[:, 0], np.unique(groups[:, 1], return_inverse=True)[1]
    heavy = sums(group, weights[row], int(group.max(initial=-1)) + 1)[group]
    found = np.zeros(len(weights))
    np.maximum.at(found, row, heavy)
    return np.minimum(1.0, cap / np.maximum(found, cap)), found, np.full(len(weights), cap)


def _people_in_clusters(rows: Rows) -> Ints:
    """Pairs of a row and somebody's part in a prompt cluster."""
    both = join(rows.about, rows.given)
    return np.stack([both[:, 0], both[:, 1] * (len(rows.people) + 1) + both[:, 2]], axis=1)


def _alike(rows: Rows, rules: TrustSettings) -> _Found:
    alike = find_alike(rows, rules.coordinated_seconds)
    factors = np.where(alike.found > 0, alike.expected / np.maximum(alike.found, 1), 1.0)
    return factors, alike.found, alike.expected


def _people_capped(weights: Floats, rows: Rows, times: float) -> _Found:
    """Of what is trained on and of what is held out each by itself: the cap is to hold of either."""
    factors, found, limits = np.ones(len(weights)), np.zeros(len(weights)), np.zeros(len(weights))
    for split in (0, 1):
        given = rows.given[rows.splits[rows.given[:, 0]] == split]
        row, person = given[:, 0], np.unique(given[:, 1], return_inverse=True)[1]
        by_person = sums(person, weights[row], int(person.max(initial=-1)) + 1)
        cap = level(by_person, times)
        heavy = by_person[person]
        np.maximum.at(found, row, heavy)
        if np.isfinite(cap):
            np.minimum.at(factors, row, np.minimum(1.0, cap / np.maximum(heavy, cap)))
            limits[row] = cap
    return factors, found, limits
