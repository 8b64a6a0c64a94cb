"""How far people are trusted, by what they said of control questions and of what other reviewers judged too."""

from dataclasses import dataclass

import numpy as np

from attune.aggregator.trust.agreement import agree
from attune.aggregator.trust.controls import PRIOR, accuracy
from attune.aggregator.trust.rows import Floats, Keys, person_key
from attune.lake.snapshot import Source

CONTROL = "control"
"""The outcome by which an application says of a response that its quality is known: true for good, false for bad."""

# They read the view signals (recipes/views.sql), which is there once a recipe ran.
_OPINION = """
SELECT
    response_id, author, end_user,
    CASE WHEN thumb = 'up' OR rating >= 4 THEN TRUE WHEN thumb = 'down' OR rating <= 2 THEN FALSE END AS good
FROM signals
WHERE
    tenant = $tenant AND NOT retracted AND kind IN ('thumb', 'rating') AND author <> 'application' AND end_user <> ''
    AND created_unix_ms >= $from_unix_ms
"""
_CONTROLS = f"""
WITH known AS (
    SELECT response_id, bool_and(outcome_flag) AS good
    FROM signals
    WHERE
        tenant = $tenant AND kind = 'outcome' AND name = '{CONTROL}' AND author = 'application' AND NOT retracted
        AND response_id <> '' AND outcome_flag IS NOT NULL
    GROUP BY response_id
    HAVING bool_and(outcome_flag) = bool_or(outcome_flag)
),
said AS ({_OPINION})
SELECT
    s.end_user,
    sum(CASE WHEN s.good = k.good THEN 1 ELSE 0 END),
    sum(CASE WHEN s.good <> k.good THEN 1 ELSE 0 END)
FROM said AS s
INNER JOIN known AS k ON k.response_id = s.response_id
WHERE s.good IS NOT NULL
GROUP BY s.end_user
ORDER BY s.end_user
"""
_REVIEWS = f"""
WITH said AS (
    SELECT response_id, end_user, bool_and(good) AS good
    FROM ({_OPINION}) AS opinions
    WHERE author = 'reviewer' AND good IS NOT NULL
    GROUP BY response_id, end_user
    HAVING bool_and(good) = bool_or(good)
)
SELECT response_id, end_user, good
FROM said
WHERE response_id IN (SELECT response_id FROM said GROUP BY response_id HAVING count(*) > 1)
ORDER BY response_id, end_user
"""


@dataclass(frozen=True)
class Standing:
    """Of some people, by their keys in order, their accuracy; who is not among them is thought of as everybody is."""

    people: Keys
    accuracies: Floats

    def of(self, people: Keys) -> Floats:
        """The accuracies of these."""
        if not len(self.people):
            return np.full(len(people), PRIOR)
        at = np.minimum(np.searchsorted(self.people, people), len(self.people) - 1)
        return np.where(self.people[at] == people, self.accuracies[at], PRIOR)


def by_controls(source: Source, tenant: str, from_unix_ms: int) -> Standing:
    """By what they said of answers to which an application gave the outcome `control`, without contradicting itself."""
    found = source.rows(_CONTROLS, {"tenant": tenant, "from_unix_ms": from_unix_ms})
    right, wrong = (np.array([float(row[column]) for row in found]) for column in (1, 2))
    return _standing([row[0] for row in found], accuracy(right, wrong))


def by_agreement(source: Source, tenant: str, from_unix_ms: int) -> Standing:
    """Of reviewers, by the answers that at least two of them judged."""
    found = source.rows(_REVIEWS, {"tenant": tenant, "from_unix_ms": from_unix_ms})
    _, answer = np.unique([row[0] for row in found], return_inverse=True)
    names, reviewer = np.unique([row[1] for row in found], return_inverse=True)
    called_good = np.array([bool(row[2]) for row in found], dtype=bool)
    return _standing([str(name) for name in names], agree(answer, reviewer, called_good).accuracy())


def _standing(names: list[str], accuracies: Floats) -> Standing:
    keys = np.array([person_key(name, "", "") for name in names], np.uint64)
    order = np.argsort(keys)
    return Standing(keys[order], accuracies[order])


NOBODY = Standing(np.empty(0, np.uint64), np.empty(0))
