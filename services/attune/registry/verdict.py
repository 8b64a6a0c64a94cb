"""What the gate said of a candidate, with every reason."""

import math
from dataclasses import dataclass
from typing import Any

from attune.errors import DataLoss, InvalidInput
from attune.registry.fields import Fields, finite


@dataclass(frozen=True)
class Check:
    """One thing that the gate looked at: what was measured, what it was held against, and a sentence with both.

    A figure that could not be measured is NaN, at rest null.
    """

    name: str
    passed: bool
    figure: float
    limit: float
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Whether a policy may serve. Raises InvalidInput for one that passed although a check did not."""

    policy_id: str
    passed: bool
    checks: tuple[Check, ...]
    created_unix_ms: int

    def __post_init__(self) -> None:
        if self.passed and not all(check.passed for check in self.checks):
            raise InvalidInput(f"the verdict on {self.policy_id} cannot pass: one of its checks did not")

    def to_json(self) -> dict[str, Any]:
        return {
            "policy_id": self.policy_id,
            "passed": self.passed,
            "checks": [
                {
                    "name": check.name,
                    "passed": check.passed,
                    "figure": finite(check.figure),
                    "limit": finite(check.limit),
                    "reason": check.reason,
                }
                for check in self.checks
            ],
            "created_unix_ms": self.created_unix_ms,
        }

    @classmethod
    def from_json(cls, fields: Fields) -> "Verdict":
        """Raises DataLoss for anything that to_json would not write."""
        try:
            return cls(
                policy_id=fields.text("policy_id"),
                passed=fields.boolean("passed"),
                checks=tuple(
                    Check(
                        name=check.text("name"),
                        passed=check.boolean("passed"),
                        figure=_figure(check, "figure"),
                        limit=_figure(check, "limit"),
                        reason=check.text("reason"),
                    )
                    for check in fields.objects("checks")
                ),
                created_unix_ms=fields.integer("created_unix_ms"),
            )
        except InvalidInput as error:
            raise DataLoss(error.message) from None


def _figure(fields: Fields, name: str) -> float:
    return math.nan if fields.values.get(name, 0) is None else fields.number(name)
