"""Caps: what one conversation, one person or one sort of prompt can weigh at most.

Each row of a group that weighs more than its cap counts as the same share of what it would: the cap over the group's
weight. That is the weighting of users by min(n/cap, 1) in McMahan et al. 2018 (arXiv 1710.06963, algorithm 1) and the
bounded contribution of Wilson et al. 2020 (arXiv 1909.01917, section 3), with rescaling instead of sampling, so that
there is no chance in it.
"""

import numpy as np

from attune.aggregator.trust.rows import Floats, Ints


def sums(groups: Ints, values: Floats, count: int) -> Floats:
    """Of each group from 0 to count - 1."""
    return np.bincount(groups, weights=values, minlength=count).astype(float)


def level(weights: Floats, times: float) -> float:
    """The cap L with L = times * mean(min(weights, L)): then nobody weighs more than so many times the mean.

    The right side is concave in L and rises faster than L at 0, so for times > 1 there is one such L; it is found by
    filling from the heaviest down. Infinite where nobody is above it.
    """
    heaviest = np.sort(weights)[::-1]
    rest = heaviest.sum() - np.concatenate([[0.0], np.cumsum(heaviest)])
    for capped in range(len(heaviest)):
        cap = times * rest[capped] / (len(heaviest) - times * capped)
        if heaviest[capped] <= cap:
            return float(cap) if capped else np.inf
    return np.inf
