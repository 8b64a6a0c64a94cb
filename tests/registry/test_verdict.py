import math

import pytest

from attune.errors import DataLoss, InvalidInput
from attune.registry.fields import Fields, canonical_json
from attune.registry.verdict import Check, Verdict


def test_a_verdict_cannot_pass_when_a_check_did_not() -> None:
    failed = Check("heldout margin", False, -0.1, 0.0, "held-out margin is -0.1 nats; more than 0 is wanted")
    with pytest.raises(InvalidInput):
        Verdict("p-000001", True, (failed,), 0)
    stored = Verdict("p-000001", False, (failed,), 0).to_json() | {"passed": True}
    with pytest.raises(DataLoss):
        Verdict.from_json(Fields(stored, "verdict"))


def test_a_figure_that_could_not_be_measured_survives_the_disk() -> None:
    check = Check("heldout margin", False, math.nan, 0.0, "held-out margin could not be measured")
    stored = canonical_json(Verdict("p-000001", False, (check,), 5).to_json())
    read = Verdict.from_json(Fields.parse(stored, "verdict"))
    assert math.isnan(read.checks[0].figure)
    assert read.checks[0].limit == 0.0
