"""What a rehearsal measured: the one shape that expectations judge, the report shows and `report.json` holds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from scipy.stats import binomtest


@dataclass(frozen=True)
class Proportion:
    """So many hits among so many trials."""

    hits: int
    trials: int

    @property
    def share(self) -> float:
        """Hits by trials; nan where nothing was tried."""
        return self.hits / self.trials if self.trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (Wilson 1927); 0 to 1 where nothing was tried."""
        if not self.trials:
            return 0.0, 1.0
        found = binomtest(self.hits, self.trials).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class ClaimProbability:
    """How answers to held-out errands begin: exact probabilities of each kind, averaged over the prompts."""

    prompts: int
    claim: float
    refusal: float
    other: float
    unresolved: float

    @property
    def counted(self) -> float:
        """The false-claim probability that counts: what was not resolved is held to be a claim."""
        return self.claim + self.unresolved


@dataclass(frozen=True)
class PolicyFigures:
    """One policy, from every side that it was looked at."""

    policy_id: str
    # Whether a user ever met it.
    served: bool
    # Votes of users, wrong ones included.
    thumbs_up: Proportion
    # Answers that were as users wished, whatever their thumbs said.
    as_wished: Proportion
    # Answers to users' errands that claimed to have done them.
    claims_to_users: Proportion
    # Sampled answers to held-out errands; absent where the policy was not measured.
    claims_heldout: Proportion | None
    # Absent where it was not computed.
    exact: ClaimProbability | None


@dataclass(frozen=True)
class SwapFigures:
    """One policy coming into service while people talked. Times are the client's clock, seconds since the start."""

    policy_id: str
    # The newest vote on a response that is in the policy's dataset; absent where the dataset holds no vote of ours.
    last_needed_vote_at: float | None
    # When the rollout entry was made.
    began_at: float
    # When the first response of the new policy reached a user.
    serving_at: float
    # Streams of all personas that were open at some moment between the two.
    streams_running: int
    # Those of them that ended without their last message.
    streams_broken: int

    @property
    def vote_to_serving_seconds(self) -> float | None:
        return None if self.last_needed_vote_at is None else self.serving_at - self.last_needed_vote_at


@dataclass(frozen=True)
class SkillFigures:
    """Greedy exact match on held-out items."""

    skill: str
    before: Proportion
    after: Proportion


@dataclass(frozen=True)
class TutorFigures:
    """Greedy answers of the persona that nobody voted on, before and after."""

    answers: int
    # Those whose output token ids were the same.
    same: int


@dataclass(frozen=True)
class BeforeAndAfter:
    """The same held-out question, asked of the base model and of the last policy, greedily."""

    skill: str
    question: str
    before: str
    after: str
    # "claim", "refusal", "other" for errands; "right", "wrong" for the rest.
    before_kind: str
    after_kind: str


@dataclass(frozen=True)
class CheckFigures:
    """One thing that the gate looked at."""

    name: str
    passed: bool
    figure: float
    limit: float
    reason: str


@dataclass(frozen=True)
class VerdictFigures:
    """What the gate said of one candidate."""

    policy_id: str
    passed: bool
    checks: tuple[CheckFigures, ...]


@dataclass(frozen=True)
class DatasetFigures:
    """How many examples a dataset has."""

    dataset_id: str
    # By "<split>/<label>", for example "train/liked".
    examples: Mapping[str, int]
    # By reason.
    left_out: Mapping[str, int]
    # Policies trained on it.
    policies: tuple[str, ...]


@dataclass(frozen=True)
class Moment:
    """One answered errand: when, by whom, and whether it was a false claim. The curve over time is made of these."""

    at: float
    policy_id: str
    claimed: bool


@dataclass(frozen=True)
class Training:
    """When the trainer was at work, seconds since the start."""

    began_at: float
    ended_at: float


@dataclass(frozen=True)
class Figures:
    """All of it. Policies are in the order of their numbers, the base model first."""

    seed: int
    shuffled: bool
    wrong_thumbs_share: float
    users: int
    started_unix_seconds: float
    # By stage, in order.
    stage_seconds: Mapping[str, float]
    policies: tuple[PolicyFigures, ...]
    last_policy_id: str
    swaps: tuple[SwapFigures, ...]
    skills: tuple[SkillFigures, ...]
    tutor: TutorFigures | None
    answers: tuple[BeforeAndAfter, ...]
    verdicts: tuple[VerdictFigures, ...]
    datasets: tuple[DatasetFigures, ...]
    cycles_skipped: int
    votes: int
    streams: int
    streams_broken: int
    # Calls that the server did not take, with the word to come again.
    calls_refused: int
    # Process ids of the inference service, at the start and at the end.
    inference_pids: tuple[int, int]
    errands: tuple[Moment, ...]
    trainings: tuple[Training, ...]
    # What stopped the rehearsal before its time, in plain words; empty when nothing did.
    stopped: str
    # Machine and versions.
    surroundings: Mapping[str, str]

    @property
    def served(self) -> tuple[PolicyFigures, ...]:
        return tuple(policy for policy in self.policies if policy.served)

    def policy(self, policy_id: str) -> PolicyFigures | None:
        return next((policy for policy in self.policies if policy.policy_id == policy_id), None)


# Figures that follow from others, written beside them.
_DERIVED: dict[type, tuple[str, ...]] = {
    Proportion: ("share", "interval"),
    ClaimProbability: ("counted",),
    SwapFigures: ("vote_to_serving_seconds",),
}


def to_json(figures: Any) -> Any:
    """Plain dicts, lists and numbers, with the figures that follow from others beside them; nan becomes None."""
    if is_dataclass(figures):
        names = (*(field.name for field in fields(figures)), *_DERIVED.get(type(figures), ()))
        return {name: to_json(getattr(figures, name)) for name in names}
    if isinstance(figures, Mapping):
        return {key: to_json(value) for key, value in figures.items()}
    if isinstance(figures, tuple):
        return [to_json(value) for value in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures
