"""How far somebody is trusted by what they said of answers whose quality is known."""

import numpy as np

from attune.aggregator.trust.rows import Floats

PRIOR_RIGHT, PRIOR_WRONG = 8.0, 2.0
"""What is thought of people of whom nothing is known: as if they had answered eight control questions of ten well."""
PRIOR = PRIOR_RIGHT / (PRIOR_RIGHT + PRIOR_WRONG)


def accuracy(right: Floats, wrong: Floats) -> Floats:
    """The mean of the Beta distribution that the prior and the answers to control questions give."""
    return (right + PRIOR_RIGHT) / (right + wrong + PRIOR_RIGHT + PRIOR_WRONG)


def trust_in(accurate: Floats) -> Floats:
    """From 0 (as good as guessing, or worse) to 1 (as good as people are thought to be, or better).

    2p - 1, the weight of a voter with accuracy p in Li and Yu 2014 (arXiv 1411.4086, section 5, with two classes), over
    that of people of whom nothing is known.
    """
    return np.clip((2 * accurate - 1) / (2 * PRIOR - 1), 0.0, 1.0)
