"""How far reviewers are trusted by how they agree with each other: Dawid and Skene 1979.

"Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm", Applied Statistics 28(1): each reviewer
calls good answers good with one probability and bad ones bad with another, which are found together with what the
answers are. Two classes. Counts are smoothed as if each had judged a few more, most of them well, so that few
judgements say little and the classes keep their names.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attune.aggregator.trust.controls import PRIOR_RIGHT, PRIOR_WRONG
from attune.aggregator.trust.rows import Floats, Ints

_ROUNDS = 50


@dataclass(frozen=True)
class Agreement:
    """Of each reviewer how many of the good and of the bad answers are called so; of each answer whether it is good."""

    good_called_good: Floats
    bad_called_bad: Floats
    good: Floats

    def accuracy(self) -> Floats:
        """The mean of both: a reviewer who calls everything good is as good as guessing."""
        return (self.good_called_good + self.bad_called_bad) / 2


def agree(answer: Ints, reviewer: Ints, called_good: NDArray[np.bool_]) -> Agreement:
    """Judgements as three arrays of one length; answers and reviewers are numbered from 0. A fixed number of rounds."""
    answers, reviewers = int(answer.max(initial=-1)) + 1, int(reviewer.max(initial=-1)) + 1
    votes = np.bincount(answer, minlength=answers)
    good = np.bincount(answer, weights=called_good, minlength=answers) / np.maximum(votes, 1)  # the majority, at first
    sensitivity = specificity = np.full(reviewers, PRIOR_RIGHT / (PRIOR_RIGHT + PRIOR_WRONG))
    for _ in range(_ROUNDS):
        sensitivity = _rate(reviewer, good[answer], called_good, reviewers)  # equation 2.3
        specificity = _rate(reviewer, 1 - good[answer], ~called_good, reviewers)
        share = np.clip(good.mean(), 0.01, 0.99) if answers else 0.5  # equation 2.4
        odds = np.where(
            called_good,
            np.log(sensitivity[reviewer] / (1 - specificity[reviewer])),
            np.log((1 - sensitivity[reviewer]) / specificity[reviewer]),
        )
        logit = np.bincount(answer, weights=odds, minlength=answers) + np.log(share / (1 - share))
        good = 1 / (1 + np.exp(-np.clip(logit, -50, 50)))  # equation 2.5
    return Agreement(sensitivity, specificity, good)


def _rate(reviewer: Ints, belongs: Floats, said_so: NDArray[np.bool_], reviewers: int) -> Floats:
    every = np.bincount(reviewer, weights=belongs, minlength=reviewers)
    said = np.bincount(reviewer, weights=belongs * said_so, minlength=reviewers)
    return (said + PRIOR_RIGHT) / (every + PRIOR_RIGHT + PRIOR_WRONG)
