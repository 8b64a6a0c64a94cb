"""Looking at the ring from outside: its metrics pages, and what the policy service says."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import grpc
import grpc.aio
from prometheus_client.parser import text_string_to_metric_families

from attune.client.authorized import Authorized
from attune.ids import BASE_POLICY
from attune.metrics_page import fetch_page
from attune.rehearsal.figures import CheckFigures, VerdictFigures
from attune.rehearsal.journal import Journal, RingState, Verdict
from attune.rehearsal.ring import Ring
from attune.runtime import pause
from attune.v1 import policy_pb2, policy_pb2_grpc

_LOOK_SECONDS = 0.5
_PAGE_SECONDS = 2.0
_CALL_SECONDS = 5.0
_OURS = "attune_"

Sample = tuple[str, Mapping[str, str], float]


def read_samples(page: str) -> list[Sample]:
    """Our own samples on a metrics page: name, labels, value."""
    ours = "\n".join(line for line in page.splitlines() if line.startswith(_OURS))
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(ours + "\n")
        for sample in family.samples
    ]


def ring_state(samples: Iterable[Sample], persona: str) -> RingState:
    """What the pages of all services say together, of one persona where it matters."""
    found = _Samples(samples)
    states = [labels["state"] for labels, value in found.named("attune_training_state") if value == 1]
    swaps = found.total("attune_swap_seconds_count", persona=persona)
    cycles: dict[str, int] = {}
    for labels, value in found.named("attune_training_cycles_total", persona=persona):
        cycles[labels["outcome"]] = cycles.get(labels["outcome"], 0) + int(value)
    return RingState(
        requests_in_flight=int(found.total("attune_requests_in_flight")),
        event_log_depth=int(found.total("attune_event_log_depth_records")),
        lake_rows=int(found.total("attune_lake_rows_total")),
        datasets=int(found.total("attune_datasets_built_total", persona=persona, recipe="thumbs")),
        dataset_examples=int(found.total("attune_dataset_examples", persona=persona, recipe="thumbs")),
        new_feedback=int(found.total("attune_new_feedback", persona=persona, recipe="thumbs")),
        training_state=states[0] if states else "idle",
        training_step=int(found.total("attune_training_step")),
        training_steps=int(found.total("attune_training_steps")),
        cycles=cycles,
        policies_loaded=int(found.total("attune_policies_loaded")),
        swap_seconds=found.total("attune_swap_seconds_sum", persona=persona) / swaps if swaps else None,
    )


@dataclass(frozen=True)
class _Samples:
    samples: Iterable[Sample]

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", tuple(self.samples))

    def named(self, name: str, **labels: str) -> list[tuple[Mapping[str, str], float]]:
        return [(has, value) for sample, has, value in self.samples if sample == name and labels.items() <= has.items()]

    def total(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.named(name, **labels))


class Watcher:
    """Keeps a journal up to date with the ring. A service that does not answer is looked at again the next time."""

    def __init__(self, ring: Ring, journal: Journal, now: Callable[[], float], started_unix_seconds: float) -> None:
        self._ring = ring
        self._journal = journal
        self._now = now
        self._started_unix_seconds = started_unix_seconds

    async def run(self, stopping: asyncio.Event) -> None:
        """Looks twice a second until it is to stop, and once more then."""
        async with self._ring.policies.async_channel() as channel:
            stub = Authorized(policy_pb2_grpc.PolicyServiceStub(channel), self._ring.policies.api_key)
            while True:
                last = stopping.is_set()
                await self._look_at_policies(stub)
                await self._look_at_pages()
                self._journal.tell_swaps(self._now())
                if last:
                    return
                await pause(stopping, _LOOK_SECONDS)

    async def _look_at_pages(self) -> None:
        fetch = partial(fetch_page, "127.0.0.1", tls=self._ring.metrics_tls, timeout_seconds=_PAGE_SECONDS)
        pages = await asyncio.gather(*(asyncio.to_thread(fetch, port) for port in self._ring.metrics_ports.values()))
        if all(pages):
            samples = [sample for page in pages for sample in read_samples(page or "")]
            self._journal.note_ring(self._now(), ring_state(samples, self._journal.voters))

    async def _look_at_policies(self, stub: Authorized) -> None:
        persona = self._journal.voters
        try:
            listed = await stub.ListPolicies(policy_pb2.ListPoliciesRequest(persona=persona), timeout=_CALL_SECONDS)
            rollout = await stub.GetRollout(policy_pb2.GetRolloutRequest(persona=persona), timeout=_CALL_SECONDS)
        except grpc.RpcError:
            return
        for policy in reversed(listed.policies):
            if policy.HasField("verdict"):
                self._journal.note_verdict(self._now(), _verdict(policy))
        for entry in reversed(rollout.history):
            self._note_rollout(entry)

    def _note_rollout(self, entry: policy_pb2.Rollout) -> None:
        main = max(entry.shares, key=lambda share: share.share).policy_id if entry.shares else BASE_POLICY
        if main != BASE_POLICY and main not in self._journal.rolled_out_at:
            self._journal.rolled_out_at[main] = entry.created_unix_ms / 1000 - self._started_unix_seconds


def _verdict(policy: policy_pb2.Policy) -> Verdict:
    return Verdict(
        policy.policy_id,
        policy.verdict.passed,
        tuple(check.reason for check in policy.verdict.checks if not check.passed),
    )


def verdict_figures(policy: policy_pb2.Policy) -> VerdictFigures:
    """A verdict with all that the gate looked at."""
    checks = tuple(
        CheckFigures(check.name, check.passed, check.figure, check.limit, check.reason)
        for check in policy.verdict.checks
    )
    return VerdictFigures(policy.policy_id, policy.verdict.passed, checks)


async def list_policies(ring: Ring, persona: str) -> list[policy_pb2.Policy]:
    """A persona's policies, oldest first."""
    async with ring.policies.async_channel() as channel:
        stub = Authorized(policy_pb2_grpc.PolicyServiceStub(channel), ring.policies.api_key)
        listed = await stub.ListPolicies(policy_pb2.ListPoliciesRequest(persona=persona), timeout=_CALL_SECONDS)
        return list(reversed(listed.policies))
