from pathlib import Path

import pytest

from attune.rehearsal.faults import ALWAYS_LEARN, Ring, rehearse_faults
from attune.rehearsal.ring import FREE_PORTS

ROOT = Path(__file__).parents[2]


# The engine's own death has tests beside the inference service.
PARTS = ("aggregator", "rollout", "trainer", "inference", "supervisor", "everything")


@pytest.mark.timeout(900)
def test_a_ring_that_is_killed_part_by_part_and_as_a_whole_loses_nothing_and_learns_again(tmp_path: Path) -> None:
    settings = {
        "ATTUNE_AGGREGATOR__BUILD_FEEDBACK": "120",
        "ATTUNE_TRAINER__KTO__EPOCHS": "1",
        # The trainer gives way to everything, other tests included.
        "ATTUNE_SUPERVISOR__STOP_SECONDS": "45",
    }
    with Ring(tmp_path / "data", ROOT / "deploy" / "demo.toml", {**FREE_PORTS, **ALWAYS_LEARN, **settings}) as ring:
        findings = rehearse_faults(ring, parts=PARTS, seed=1, say=print)

    assert findings.misses == []
    assert [fault.name for fault in findings.faults] == list(PARTS)
    assert findings.acknowledged is not None
    assert findings.acknowledged.acknowledged > 120
    assert findings.failures["Unavailable"] > 0
