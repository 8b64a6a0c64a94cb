"""PolicyService: what a persona's policies are, how its traffic is shared, and the way back."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any

from attune import ids, metrics
from attune.access import CALLER
from attune.clock import now_unix_ms
from attune.errors import Aborted, AttuneError, InvalidInput, NotFound
from attune.personas.persona import Persona
from attune.personas.store import Personas
from attune.registry.policies import PolicyManifest, Registry
from attune.registry.rollouts import MAX_REASON_CHARACTERS, RolloutEntry, RolloutLog
from attune.registry.verdict import Verdict
from attune.rollout.controller import before, highest_number, roll_back
from attune.v1 import policy_pb2, policy_pb2_grpc

logger = logging.getLogger(__name__)

# An answer stays below gRPC's usual 4 MiB.
_MOST_POLICIES = 200
_MOST_ENTRIES = 500
_ATTEMPTS = 5


class PolicyService(policy_pb2_grpc.PolicyServiceServicer):
    """Reads the registry and the rollout log anew for every call; knows nothing of its own.

    Lists hold the newest 200 policies and the newest 500 entries.
    """

    def __init__(
        self,
        registry: Registry,
        log: RolloutLog,
        personas: Personas,
        *,
        base_model_hash: str,
    ) -> None:
        self._registry = registry
        self._log = log
        self._personas = personas
        self._base_model_hash = base_model_hash

    async def ListPolicies(self, request: policy_pb2.ListPoliciesRequest, context: Any) -> Any:
        persona = self._persona(request.persona)
        return await asyncio.to_thread(self._list, persona)

    async def GetRollout(self, request: policy_pb2.GetRolloutRequest, context: Any) -> Any:
        persona = self._persona(request.persona)
        return await asyncio.to_thread(self._rollout, persona)

    async def ApprovePolicy(self, request: policy_pb2.ApprovePolicyRequest, context: Any) -> Any:
        persona = self._persona(request.persona)
        if ids.policy_number(request.policy_id) == 0:
            raise InvalidInput("policy_id is base; the base model needs no approval", field="policy_id")
        _check_reason(request.reason)
        current = await asyncio.to_thread(self._enter, persona, request.policy_id, request.reason)
        return policy_pb2.ApprovePolicyResponse(current=current)

    async def RollBack(self, request: policy_pb2.RollBackRequest, context: Any) -> Any:
        persona = self._persona(request.persona)
        if request.policy_id:
            ids.policy_number(request.policy_id)
        _check_reason(request.reason)
        current = await asyncio.to_thread(self._enter, persona, request.policy_id, request.reason)
        return policy_pb2.RollBackResponse(current=current)

    def _persona(self, name: str) -> Persona:
        return self._personas.find(CALLER.get().tenant, name)

    def _list(self, persona: Persona) -> policy_pb2.ListPoliciesResponse:
        manifests = self._registry.list(persona.tenant, persona.name)[-_MOST_POLICIES:]
        policies = [_policy(manifest, self._verdict(manifest.policy_id)) for manifest in reversed(manifests)]
        if persona.approval == "person":
            served = highest_number(self._log.history(persona.tenant, persona.name))
            for policy in policies:
                policy.awaits_approval = policy.verdict.passed and ids.policy_number(policy.policy_id) > served
        return policy_pb2.ListPoliciesResponse(policies=policies)

    def _verdict(self, policy_id: str) -> Verdict | None:
        try:
            return self._registry.read_verdict(policy_id)
        except NotFound:
            return None
        except AttuneError as error:
            logger.warning("damaged verdict", extra={"policy_id": policy_id, "reason": error.message})
            return None

    def _rollout(self, persona: Persona) -> policy_pb2.GetRolloutResponse:
        history = self._log.history(persona.tenant, persona.name)
        return policy_pb2.GetRolloutResponse(
            current=_rollout(history[-1]) if history else _before_any_entry(persona.name),
            history=[_rollout(entry) for entry in reversed(history[-_MOST_ENTRIES:])],
        )

    def _enter(self, persona: Persona, policy_id: str, reason: str) -> policy_pb2.Rollout:
        """Gives a policy all traffic, the one that served before when none is named.

        Tries again when another entry came between; but who named no policy meant the state that they had seen."""
        for _ in range(_ATTEMPTS if policy_id else 1):
            history = self._log.history(persona.tenant, persona.name)
            target = policy_id or before(self._still_there(history))
            entry = roll_back(persona, history, target, reason, now_unix_ms())
            self._check_target(target, persona)
            with contextlib.suppress(Aborted):
                self._log.append(entry)
                metrics.ROLLOUT_ENTRIES.labels(persona.label, entry.author).inc()
                logger.info(
                    "entered by an operator",
                    extra={"persona": persona.name, "policy_id": target, "entry": entry.number},
                )
                return _rollout(entry)
        raise Aborted(f"the rollout of persona {persona.name} was changed meanwhile; look at it and try again")

    def _still_there(self, history: Sequence[RolloutEntry]) -> list[RolloutEntry]:
        """Without entries whose policy was withdrawn since; the one that holds now stays."""
        there = {ids.BASE_POLICY, *self._registry.ids()}
        return [entry for entry in history[:-1] if entry.main_policy_id in there] + list(history[-1:])

    def _check_target(self, policy_id: str, persona: Persona) -> None:
        if policy_id == ids.BASE_POLICY:
            return
        manifest = self._registry.read(policy_id)
        if (manifest.tenant, manifest.persona) != (persona.tenant, persona.name):
            raise NotFound(f"no policy {policy_id}", field="policy_id")
        self._registry.verify(policy_id, base_model_hash=self._base_model_hash)


def _check_reason(reason: str) -> None:
    if len(reason) > MAX_REASON_CHARACTERS:
        raise InvalidInput(
            f"reason has {len(reason)} characters; at most {MAX_REASON_CHARACTERS} are taken", field="reason"
        )


def _policy(manifest: PolicyManifest, verdict: Verdict | None) -> policy_pb2.Policy:
    return policy_pb2.Policy(
        policy_id=manifest.policy_id,
        persona=manifest.persona,
        base_model_hash=manifest.base_model_hash,
        parent_policy_id=manifest.parent_policy_id,
        dataset_ids=manifest.dataset_ids,
        created_unix_ms=manifest.created_unix_ms,
        verdict=None
        if verdict is None
        else policy_pb2.Verdict(
            passed=verdict.passed,
            checks=[
                policy_pb2.Check(
                    name=check.name,
                    passed=check.passed,
                    figure=check.figure,
                    limit=check.limit,
                    reason=check.reason,
                )
                for check in verdict.checks
            ],
            created_unix_ms=verdict.created_unix_ms,
        ),
    )


def _rollout(entry: RolloutEntry) -> policy_pb2.Rollout:
    return policy_pb2.Rollout(
        number=entry.number,
        persona=entry.persona,
        shares=[policy_pb2.Share(policy_id=policy_id, share=share) for policy_id, share in entry.shares],
        author=entry.author,
        reason=entry.reason,
        created_unix_ms=entry.created_unix_ms,
    )


def _before_any_entry(persona: str) -> policy_pb2.Rollout:
    return policy_pb2.Rollout(persona=persona, shares=[policy_pb2.Share(policy_id=ids.BASE_POLICY, share=1.0)])
