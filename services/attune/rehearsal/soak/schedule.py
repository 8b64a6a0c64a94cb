"""What happens in one run: drawn from its seed, so that a seed that failed can be looked at again."""

import random
from dataclasses import dataclass

SHIPPER_STEPS = ("read", "sent", "positioned")
INGEST_STEPS = ("converted", "dead letters written", "committed", "synced", "positioned", "tidied")
BUILD_STEPS = ("rows read", "files written", "manifest written", "in place")
STEPS = {"shipper": SHIPPER_STEPS, "aggregator": (*INGEST_STEPS, *BUILD_STEPS)}
"""Where a part can be struck, by name; `writer` and `broker` are struck by the clock."""

KILL, FREEZE, DISK_FULL = "kill", "freeze", "disk full"
KINDS = {
    "writer": (KILL,),
    "shipper": (KILL, FREEZE),
    "aggregator": (KILL, FREEZE, DISK_FULL),
    "broker": (KILL, FREEZE),
}

_LATEST_SECONDS = 2.0
_MOST_PASSES = 3
_RARE = frozenset(BUILD_STEPS) | {"dead letters written"}


@dataclass(frozen=True)
class Fault:
    """Strikes a part when it reaches the step for the n-th time, or (without a step) some seconds after the start."""

    part: str
    kind: str
    step: str = ""
    nth: int = 1
    at_seconds: float = 0.0

    def __str__(self) -> str:
        when = f"at `{self.step}` ({self.nth})" if self.step else f"after {self.at_seconds:.1f} s"
        return f"{self.part}: {self.kind} {when}"


@dataclass(frozen=True)
class Schedule:
    """One run."""

    seed: int
    kafka: bool
    responses: int
    batch_records: int
    rival: bool
    """Whether a second aggregator runs from the start."""
    faults: tuple[Fault, ...]


def draw(seed: int, *, kafka: bool, disk: bool) -> Schedule:
    """`kafka`: whether a broker can be had; `disk`: whether there is a small disk that can be filled."""
    chance = random.Random(f"soak-{seed}")
    with_kafka = kafka and chance.random() < 0.5
    parts = ["aggregator", "aggregator", "aggregator", "writer"] + (["shipper", "shipper", "broker"] * with_kafka)
    faults = []
    for _ in range(chance.randint(2, 4)):
        part = chance.choice(parts)
        kind = chance.choice([kind for kind in KINDS[part] if disk or kind != DISK_FULL])
        if part in STEPS:
            step = chance.choice(STEPS[part])
            faults.append(Fault(part, kind, step, 1 if step in _RARE else chance.randint(1, _MOST_PASSES)))
        else:
            faults.append(Fault(part, kind, at_seconds=round(chance.uniform(0.2, _LATEST_SECONDS), 2)))
    return Schedule(
        seed, with_kafka, chance.randint(80, 240), chance.choice((7, 20, 60)), chance.random() < 0.3, tuple(faults)
    )
