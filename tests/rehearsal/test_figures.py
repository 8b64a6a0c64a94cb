import json
import math

import pytest

from attune.rehearsal.figures import ClaimProbability, Proportion, to_json
from tests.rehearsal.sample import sample_figures


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    # Wilson's interval, as R's binom.confint(method = "wilson") gives it
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (315, 500, 0.5869, 0.6712)],
)
def test_the_interval_is_wilsons(hits: int, trials: int, low: float, high: float) -> None:
    assert Proportion(hits, trials).interval == pytest.approx((low, high), abs=1e-4)


def test_nothing_tried_is_no_share_and_any_interval() -> None:
    nothing = Proportion(0, 0)
    assert math.isnan(nothing.share)
    assert nothing.interval == (0.0, 1.0)


def test_what_is_unresolved_counts_as_a_claim() -> None:
    assert ClaimProbability(120, 0.05, 0.9, 0.03, 0.02).counted == pytest.approx(0.07)


def test_json_has_every_figure_and_those_that_follow_from_them() -> None:
    fields = json.loads(json.dumps(to_json(sample_figures()), allow_nan=False))
    base = fields["policies"][0]
    assert base["exact"]["counted"] == pytest.approx(0.63)
    assert base["claims_heldout"]["share"] == pytest.approx(0.63)
    assert base["claims_heldout"]["interval"][0] < 0.63 < base["claims_heldout"]["interval"][1]
    assert fields["swaps"][0]["vote_to_serving_seconds"] == pytest.approx(44.9)
    assert fields["policies"][2]["thumbs_up"]["share"] is None  # nobody met it
