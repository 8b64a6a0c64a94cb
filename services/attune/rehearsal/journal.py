"""What has happened so far, as seen from outside the ring: users and watchers write it, view and report read it.

Times are seconds since the rehearsal began, by its own clock. Nothing here does I/O or reads a clock.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from attune.rehearsal.figures import Moment, Proportion, Training

CLAIM = "claim"
_BEFORE_A_SWAP = ("evaluating", "publishing")


@dataclass(frozen=True)
class Exchange:
    """One question of a user, its whole answer, and the vote on it."""

    at: float
    persona: str
    skill: str
    question: str
    answer: str
    # "claim", "refusal" or "other" for errands; "right" or "wrong" for the rest.
    kind: str
    policy_id: str
    # Whether the answer is what the user wished for.
    as_wished: bool
    # None where the user does not vote.
    thumb_up: bool | None

    @property
    def is_errand(self) -> bool:
        return self.kind not in ("right", "wrong")


@dataclass(eq=False)
class Stream:
    """One streamed response, while it runs and after."""

    persona: str
    began_at: float
    policy_id: str = ""
    ended_at: float | None = None
    # Why it ended without its last message; empty when it did not.
    broken: str = ""

    def open_between(self, since: float, until: float) -> bool:
        return self.began_at <= until and (self.ended_at is None or self.ended_at >= since)


@dataclass(frozen=True)
class Event:
    """One line of the story."""

    at: float
    text: str


@dataclass(frozen=True)
class Verdict:
    """What the gate said, shortly."""

    policy_id: str
    passed: bool
    # The checks that failed, each a sentence.
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RingState:
    """What the services' metrics pages say. Nothing is known yet of what is at its default."""

    requests_in_flight: int = 0
    event_log_depth: int = 0
    lake_rows: int = 0
    datasets: int = 0
    dataset_examples: int = 0
    new_feedback: int = 0
    training_state: str = "idle"
    training_step: int = 0
    training_steps: int = 0
    cycles: Mapping[str, int] = field(default_factory=dict)
    policies_loaded: int = 0
    swap_seconds: float | None = None


@dataclass
class Tally:
    """Running counts of one policy's exchanges."""

    votes: int = 0
    thumbs_up: int = 0
    answers: int = 0
    as_wished: int = 0
    errands: int = 0
    claims: int = 0

    @property
    def approval(self) -> Proportion:
        return Proportion(self.thumbs_up, self.votes)

    @property
    def wishes(self) -> Proportion:
        return Proportion(self.as_wished, self.answers)

    @property
    def claimed(self) -> Proportion:
        return Proportion(self.claims, self.errands)


@dataclass
class Journal:
    """The rehearsal so far. `voters` is the persona that users vote on; its policies are the ones followed."""

    voters: str
    seed: int
    budget_seconds: float
    build_feedback: int
    stage: str = "starting"
    waiting_for: str = ""
    progress: tuple[int, int] | None = None
    users_talking: int = 0
    ring: RingState = field(default_factory=RingState)
    ring_seen_at: float = 0.0
    exchanges: list[Exchange] = field(default_factory=list)
    # What was said last, measured answers included: to be looked at, and not counted.
    latest: deque[Exchange] = field(default_factory=lambda: deque(maxlen=50))
    streams: list[Stream] = field(default_factory=list)
    open_streams: int = 0
    broken_streams: int = 0
    refused_calls: int = 0
    events: list[Event] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    # When each policy's rollout entry was made, and when its first response reached a user.
    rolled_out_at: dict[str, float] = field(default_factory=dict)
    serving_at: dict[str, float] = field(default_factory=dict)
    # When the vote on each response was acknowledged.
    voted_at: dict[str, float] = field(default_factory=dict)
    trainings: list[Training] = field(default_factory=list)
    training_since: float | None = None
    told_swaps: set[str] = field(default_factory=set)

    def tell(self, at: float, text: str) -> None:
        self.events.append(Event(at, text))

    def enter(self, at: float, stage: str, waiting_for: str = "") -> None:
        """Begins a stage."""
        self.stage, self.waiting_for, self.progress = stage, waiting_for, None
        self.tell(at, stage)

    def begin_stream(self, at: float, persona: str) -> Stream:
        stream = Stream(persona, at)
        self.streams.append(stream)
        self.open_streams += 1
        return stream

    def stream_says(self, at: float, stream: Stream, policy_id: str) -> None:
        """Notes which policy answers, and when a policy of the voters' persona did so for the first time."""
        stream.policy_id = policy_id
        if stream.persona == self.voters:
            self.serving_at.setdefault(policy_id, at)

    def end_stream(self, at: float, stream: Stream, broken: str = "") -> None:
        stream.ended_at, stream.broken = at, broken
        self.open_streams -= 1
        self.broken_streams += bool(broken)

    def refuse_stream(self, stream: Stream) -> None:
        """Takes back a stream that the server did not begin: it was told to come again, and nothing broke."""
        self.streams.remove(stream)
        self.open_streams -= 1
        self.refused_calls += 1

    def note_exchange(self, exchange: Exchange, response_id: str) -> None:
        """Takes in an answered question; where it was voted on, the vote is acknowledged by now."""
        self.exchanges.append(exchange)
        self.latest.append(exchange)
        if exchange.persona != self.voters:
            return
        tally = self.tallies.setdefault(exchange.policy_id, Tally())
        tally.answers += 1
        tally.as_wished += exchange.as_wished
        tally.errands += exchange.is_errand
        tally.claims += exchange.kind == CLAIM
        if exchange.thumb_up is not None:
            tally.votes += 1
            tally.thumbs_up += exchange.thumb_up
            self.voted_at[response_id] = exchange.at

    def note_ring(self, at: float, state: RingState) -> None:
        """Takes in what the metrics pages say, and tells where a training begins or ends."""
        before, self.ring, self.ring_seen_at = self.ring, state, at
        if state.datasets > before.datasets:
            self.tell(at, f"dataset {state.datasets} is built: {state.dataset_examples} votes with their responses")
        works = state.training_state not in ("idle", "")
        if works and self.training_since is None:
            self.training_since = at
            self.tell(at, "the trainer begins a cycle")
        elif not works and self.training_since is not None:
            self.trainings.append(Training(self.training_since, at))
            self.tell(at, f"the trainer ends the cycle after {at - self.training_since:.0f} s")
            self.training_since = None
        for outcome in ("skipped", "failed"):
            if state.cycles.get(outcome, 0) > before.cycles.get(outcome, 0):
                meaning = "little is left to learn" if outcome == "skipped" else "see the trainer's log"
                self.tell(at, f"the trainer's cycle was {outcome}: {meaning}")

    def leave_ring(self) -> None:
        """Nobody looks at the ring any more: what it was doing last is not what it does."""
        self.ring = replace(self.ring, training_state="", training_step=0, training_steps=0, new_feedback=0)

    def note_verdict(self, at: float, verdict: Verdict) -> None:
        if verdict.policy_id in self.verdicts:
            return
        self.verdicts[verdict.policy_id] = verdict
        if verdict.passed:
            self.tell(at, f"{verdict.policy_id} passed the gate")
        else:
            self.tell(at, f"{verdict.policy_id} was refused: {'; '.join(verdict.reasons)}")

    def swaps(self) -> Iterator[tuple[str, float, float]]:
        """Policy, rollout entry, first response: of every policy that users met, the base model apart."""
        for policy_id, began_at in self.rolled_out_at.items():
            serving_at = self.serving_at.get(policy_id)
            if serving_at is not None:
                yield policy_id, min(began_at, serving_at), serving_at

    def all_trainings(self) -> tuple[Training, ...]:
        """Those that ended, and the one that was running when users last heard of it."""
        if self.training_since is None:
            return tuple(self.trainings)
        return (*self.trainings, Training(self.training_since, max(self.training_since, self.ring_seen_at)))

    @property
    def trains(self) -> bool:
        """Whether a cycle runs, as far as anybody looks."""
        return self.training_since is not None and self.ring.training_state not in ("idle", "")

    @property
    def swap_is_near(self) -> bool:
        """Whether a candidate is being judged, or has passed and gives no answers yet."""
        passed = [policy_id for policy_id, verdict in self.verdicts.items() if verdict.passed]
        return self.ring.training_state in _BEFORE_A_SWAP or (bool(passed) and passed[-1] not in self.serving_at)

    def tell_swaps(self, at: float) -> None:
        """Tells of each swap once, when it is over."""
        for policy_id, began_at, serving_at in self.swaps():
            if policy_id not in self.told_swaps:
                self.told_swaps.add(policy_id)
                running = self.streams_during(began_at, serving_at)
                broken = sum(bool(stream.broken) for stream in running)
                self.tell(
                    at,
                    f"{policy_id} serves, {serving_at - began_at:.1f} s after it got the traffic; "
                    f"{len(running)} streams were running, {broken or 'none'} broke",
                )

    def streams_during(self, since: float, until: float) -> list[Stream]:
        return [stream for stream in self.streams if stream.open_between(since, until)]

    def errands(self) -> tuple[Moment, ...]:
        """The voters' errands in the order of their answers."""
        return tuple(
            Moment(exchange.at, exchange.policy_id, exchange.kind == CLAIM)
            for exchange in self.exchanges
            if exchange.is_errand and exchange.persona == self.voters
        )
