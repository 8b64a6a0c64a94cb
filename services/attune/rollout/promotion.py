"""The loop that looks for policies that passed the gate and enters them into the rollout log."""

import logging
import time
from collections.abc import Iterable

from attune import metrics
from attune.errors import Aborted, AttuneError, NotFound, Unavailable
from attune.personas.persona import Persona
from attune.registry.policies import Registry
from attune.registry.rollouts import RolloutEntry, RolloutLog
from attune.rollout.controller import decide, highest_number

logger = logging.getLogger(__name__)


class Promotion:
    """Enters each persona's newest verified policy into its rollout log, once; not where a person is to approve.

    All that it knows is in the registry and the log, so another process may go on where this one ended, or run beside
    it: of two that enter the same number one wins. What it remembers only saves reading files again that never change.
    """

    def __init__(
        self, registry: Registry, log: RolloutLog, personas: Iterable[Persona], *, base_model_hash: str
    ) -> None:
        self._registry = registry
        self._log = log
        self._personas = personas
        self._base_model_hash = base_model_hash
        self._histories: dict[tuple[str, str], tuple[RolloutEntry, ...]] = {}
        self._owners: dict[str, tuple[str, str] | None] = {}
        self._complaints: dict[str, str] = {}

    def turn(self) -> None:
        """Looks at every persona once. A persona whose files are damaged does not keep the others waiting."""
        for persona in self._personas:
            try:
                self._look(persona)
            except Aborted:
                continue  # somebody else was first; the next turn reads what they wrote
            except AttuneError as error:
                self._complain(f"persona {persona.name}", error.message)
            else:
                self._complaints.pop(f"persona {persona.name}", None)

    def _look(self, persona: Persona) -> None:
        if persona.approval == "person":
            return
        history = self._history(persona)
        candidates = [
            policy_id
            for policy_id in self._registry.ids(highest_number(history))
            if self._may_serve(policy_id, persona)
        ]
        entry = decide(persona, history, candidates, time.time_ns() // 1_000_000)
        if entry is None:
            return
        self._log.append(entry)
        metrics.ROLLOUT_ENTRIES.labels(persona.label, entry.author).inc()
        logger.info(
            "policy promoted",
            extra={"persona": persona.name, "policy_id": entry.main_policy_id, "entry": entry.number},
        )

    def _history(self, persona: Persona) -> tuple[RolloutEntry, ...]:
        key = (persona.tenant, persona.name)
        newest = self._log.current(*key)
        known = self._histories.get(key, ())
        if (known[-1] if known else None) != newest:
            self._histories[key] = known = self._log.history(*key)
        return known

    def _may_serve(self, policy_id: str, persona: Persona) -> bool:
        """Whether the policy is this persona's, has passed and is whole.

        What can never serve, because it was refused or is damaged, is remembered as nobody's.
        """
        try:
            if policy_id not in self._owners:
                manifest = self._registry.read(policy_id)
                self._owners[policy_id] = (manifest.tenant, manifest.persona)
            if self._owners[policy_id] != (persona.tenant, persona.name):
                return False
            passed = self._registry.read_verdict(policy_id).passed
            if passed:
                self._registry.verify(policy_id, base_model_hash=self._base_model_hash)
            else:
                self._owners[policy_id] = None
        except NotFound:
            return False  # the gate has not spoken yet
        except Unavailable:
            raise  # the disk, not the policy
        except AttuneError as error:
            self._owners[policy_id] = None
            self._complain(policy_id, error.message)
            return False
        return passed

    def _complain(self, about: str, reason: str) -> None:
        """Logs what cannot be promoted, once for each reason."""
        if self._complaints.get(about) != reason:
            self._complaints[about] = reason
            logger.warning("not promoted", extra={"about": about, "reason": reason})
