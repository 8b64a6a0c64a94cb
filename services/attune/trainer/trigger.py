"""When to train: on the newest dataset that was not cycled yet, unless there is little left to learn."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from attune.trainer.examples import Example


@dataclass(frozen=True)
class Approval:
    """Thumbs on answers of one policy; `lower` is the lower end of Wilson's 95 % interval of the share of thumbs up."""

    liked: int
    thumbs: int

    @property
    def share(self) -> float:
        return self.liked / self.thumbs if self.thumbs else math.nan

    @property
    def lower(self) -> float:
        """0 without any thumbs."""
        if not self.thumbs:
            return 0.0
        return float(binomtest(self.liked, self.thumbs).proportion_ci(method="wilson").low)


def next_dataset(dataset_ids: Sequence[str], cycled: Collection[str]) -> str | None:
    """The newest dataset, the last in the sequence, or None if it was cycled.

    Older ones are never trained on: the newest covers the whole window.
    """
    newest = dataset_ids[-1] if dataset_ids else None
    return None if newest is None or newest in cycled else newest


def approval(examples: Sequence[Example], policy_id: str) -> Approval:
    """What users said of the policy that serves now."""
    thumbs = [example.liked for example in examples if example.policy_id == policy_id]
    return Approval(sum(thumbs), len(thumbs))


def enough_learned(of_serving: Approval, enough_approval: float) -> bool:
    """Whether the serving policy is surely liked so well that training on would rather harm than help."""
    return of_serving.lower > enough_approval
