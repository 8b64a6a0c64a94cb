"""Whether the engine runs the weights that were trained: the last check before a policy serves."""

from collections.abc import Sequence
from dataclasses import dataclass

from attune.errors import FailedPrecondition

MAX_DIFFERENCE_NATS = 0.05


@dataclass(frozen=True)
class Reading:
    """Log-probabilities of one probe's output tokens, natural, at temperature 1."""

    engine_policy: Sequence[float]
    engine_base: Sequence[float]
    trainer_policy: Sequence[float]


def judge_probe(policy_id: str, readings: Sequence[Reading]) -> float:
    """Mean absolute difference between the engine's and the trainer's logprobs of the policy, nats a token.

    Raises FailedPrecondition when it passes MAX_DIFFERENCE_NATS, or when the engine gives the base model's logprobs:
    weights that never arrived.
    """
    differences = [
        abs(ours - theirs)
        for reading in readings
        for ours, theirs in zip(reading.engine_policy, reading.trainer_policy, strict=True)
    ]
    if not differences:
        raise FailedPrecondition(f"{policy_id} has no probe: nothing shows that the engine runs its weights")
    difference = sum(differences) / len(differences)
    # Written so that NaN does not pass.
    if not difference <= MAX_DIFFERENCE_NATS:
        raise FailedPrecondition(
            f"the engine's logprobs of {policy_id} are {difference:.3f} nats from the trainer's in the mean; "
            f"{MAX_DIFFERENCE_NATS} is the limit"
        )
    if all(list(reading.engine_policy) == list(reading.engine_base) for reading in readings):
        raise FailedPrecondition(f"the engine gives the base model's logprobs for {policy_id}: it has not arrived")
    return difference
