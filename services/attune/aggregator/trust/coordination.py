"""Who votes alike in time and content: more people saying the same of the same thing at once than chance brings.

After the space-time permutation scan of Kulldorff et al. 2005 (PLoS Medicine 2(3): e59), with content, a prompt cluster
and a label, in the place of space. Cases are people in windows: of N of them K say k, and n are in window t. When what
is said and when have nothing to do with each other, mu = K * n / N of those in t are expected to say k (equation 1),
and their number is hypergeometric (as there). What is always popular, and hours that are always busy, are therefore no
sign of anything. It cannot tell people who agreed to vote from people whom one event made vote: both weigh less.

Not done: the likelihood ratio and its Monte Carlo test. All windows of some widths, each also moved on by half, are
tested, and the level is divided by the number of tests (Bonferroni).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

from attune.aggregator.trust.rows import Floats, Ints, Rows, join

_LEVEL = 0.01
_LEAST_PEOPLE = 3


@dataclass(frozen=True)
class Alike:
    """Of each row: in the window that speaks loudest against it, how many people said so, and how many would by chance.

    Where none does both are 0.
    """

    found: Floats
    expected: Floats


@dataclass(frozen=True)
class _Window:
    cell: Ints  # of each vote
    found: Floats  # of each cell
    expected: Floats
    chance: Floats
    tests: int


def find_alike(rows: Rows, window_seconds: Sequence[float]) -> Alike:
    votes = join(rows.about, rows.given)
    row, person = votes[:, 0], votes[:, 2]
    labels = int(rows.labels.max(initial=0)) + 1
    content = np.unique(votes[:, 1] * labels + rows.labels[row], return_inverse=True)[1]
    windows = [
        _window(rows, row, person, content, (rows.created_unix_ms + moved) // width)
        for width in (round(seconds * 1000) for seconds in window_seconds)
        for moved in (0, width // 2)
    ]
    limit = _LEVEL / max(1, sum(window.tests for window in windows))
    found, expected = np.zeros(len(rows)), np.zeros(len(rows))
    share = np.ones(len(rows))
    for window in windows:
        ratio = window.expected / np.maximum(window.found, 1)
        told = np.flatnonzero((window.chance <= limit)[window.cell])
        told = told[np.argsort(-ratio[window.cell[told]], kind="stable")]  # the smallest is written last
        told = told[ratio[window.cell[told]] < share[row[told]]]
        cells = window.cell[told]
        share[row[told]], found[row[told]], expected[row[told]] = (
            ratio[cells],
            window.found[cells],
            window.expected[cells],
        )
    return Alike(found, expected)


def _window(rows: Rows, row: Ints, person: Ints, content: Ints, times: Ints) -> _Window:
    """All windows of one width, side by side. `row`, `person` and `content` are of votes, `times` of rows."""
    moment, when_row = np.unique(times, return_inverse=True)
    when = when_row[row]
    people = len(rows.people)
    cells, cell = np.unique(content * max(1, len(moment)) + when, return_inverse=True)
    found = np.bincount(np.unique(cell * people + person) // max(1, people), minlength=len(cells)).astype(float)
    # Whoever says something is there, whether it has a keyword or not.
    there = when_row[rows.given[:, 0]] * people + rows.given[:, 1]
    present = np.bincount(np.unique(there) // max(1, people), minlength=len(moment)).astype(float)
    content_of, when_of = np.divmod(cells, max(1, len(moment)))
    saying = np.bincount(content_of, weights=found)[content_of] if len(cells) else np.empty(0)
    every = present.sum()
    expected = saying * present[when_of] / max(1, every)
    chance = np.ones(len(cells))
    likely = np.flatnonzero((found >= _LEAST_PEOPLE) & (found > 2 * expected))
    chance[likely] = hypergeom.sf(found[likely] - 1, every, saying[likely], present[when_of[likely]])
    # What could have been found follows from both margins alone, or the level would not hold.
    tests = len(np.unique(content_of[saying >= _LEAST_PEOPLE])) * int((present >= _LEAST_PEOPLE).sum())
    return _Window(cell, found, expected, chance, tests)
