"""PolicyService: what a persona's policies are, how its traffic is shared, and the way back."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any

from attune import ids, metrics
from attune.errors import Aborted, AttuneError, InvalidInput, NotFound
from attune.personas.persona import Persona
from attune.registry.policies import PolicyManifest, Registry
from attune.registry.rollouts import MAX_REASON_CHARACTERS, RolloutEntry, RolloutLog
from attune.registry.verdict import Verdict
from attune.rollout.controller import before, roll_back
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
        personas: Mapping[str, Persona],
        *,
        default_persona: str,
        base_model_hash: str,
    ) -> None:
        self._registry = registry
        self._log = log
        self._personas = personas
        self._default_persona = default_persona
        self._base_model_hash = base_model_hash

    async def ListPolicies(self, request: policy_pb2.ListPoliciesRequest, context: Any) -> Any:
        persona = self._persona(request.persona)
        return await asyncio.to_thread(self._list, persona)

    async def GetRollout(self, request: policy_pb2.GetRolloutRequest, context: Any) -> Any:
        persona = self._persona(request.persona)
        return await asyncio.to_thread(self._rollout, persona)

    async def RollBack(self, request: policy_pb2.RollBackRequest, context: Any) -> Any:
        persona = self._persona(request.persona)
        if request.policy_id:
            ids.policy_number(request.policy_id)
        if len(request.reason) > MAX_REASON_CHARACTERS:
            raise InvalidInput(
                f"reason has {len(request.reason)} characters; at most {MAX_REASON_CHARACTERS} are taken",
                field="reason",
            )
        return await asyncio.to_thread(self._roll_back, persona, request.policy_id, request.reason)

    def _persona(self, name: str) -> Persona:
        try:
            return self._personas[name or self._default_persona]
        except KeyError:
            raise NotFound("no such persona", field="persona") from None

    def _list(self, persona: Persona) -> policy_pb2.ListPoliciesResponse:
        manifests = self._registry.list(persona.tenant, persona.name)[-_MOST_POLICIES:]
        return policy_pb2.ListPoliciesResponse(
            policies=[_policy(manifest, self._verdict(manifest.policy_id)) for manifest in reversed(manifests)]
        )

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

    def _roll_back(self, persona: Persona, policy_id: str, reason: str) -> policy_pb2.RollBackResponse:
        """Tries again when another entry came between; but who named no policy meant the state that they had seen."""
        for _ in range(_ATTEMPTS if policy_id else 1):
            history = self._log.history(persona.tenant, persona.name)
            target = policy_id or before(history)
            entry = roll_back(persona, history, target, reason, time.time_ns() // 1_000_000)
            self._check_target(target, persona)
            with contextlib.suppress(Aborted):
                self._log.append(entry)
                metrics.ROLLOUT_ENTRIES.labels(persona.name, entry.author).inc()
                logger.info("rolled back", extra={"persona": persona.name, "policy_id": target, "entry": entry.number})
                return policy_pb2.RollBackResponse(current=_rollout(entry))
        raise Aborted(f"the rollout of persona {persona.name} was changed meanwhile; look at it and try again")

    def _check_target(self, policy_id: str, persona: Persona) -> None:
        if policy_id == ids.BASE_POLICY:
            return
        manifest = self._registry.read(policy_id)
        if (manifest.tenant, manifest.persona) != (persona.tenant, persona.name):
            raise NotFound(f"no policy {policy_id}", field="policy_id")
        self._registry.verify(policy_id, base_model_hash=self._base_model_hash)


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
