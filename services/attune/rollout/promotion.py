"""The loop that looks for policies that passed the gate and enters them into the rollout log."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from attune import ids, metrics
from attune.clock import now_unix_ms
from attune.errors import Aborted, AttuneError, NotFound, Unavailable
from attune.lake.erased import Erased, erased_by_request
from attune.personas.persona import Persona
from attune.registry.lineage import Lineage
from attune.registry.policies import Registry
from attune.registry.rollouts import RolloutEntry, RolloutLog
from attune.rollout.controller import decide, give_up, highest_number

logger = logging.getLogger(__name__)

_MS_PER_HOUR = 3_600_000


class Promotion:
    """Enters each persona's newest verified policy into its rollout log, once; not where a person is to approve.

    All that it knows is in the registry and the log, so another process may go on where this one ended, or run beside
    it: of two that enter the same number one wins. What it remembers only saves reading files again that never change.
    """

    def __init__(
        self,
        registry: Registry,
        log: RolloutLog,
        personas: Iterable[Persona],
        *,
        base_model_hash: str,
        datasets: Path,
        withdraw_hours: float,
    ) -> None:
        self._registry = registry
        self._log = log
        self._personas = personas
        self._base_model_hash = base_model_hash
        self._datasets = datasets
        self._withdraw_ms = withdraw_hours * _MS_PER_HOUR
        self._lineage = Lineage(registry)
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
        history = self._history(persona)
        now = now_unix_ms()
        erased = erased_by_request(self._datasets)
        tainted = self._lineage.made_with(erased)
        entry = None if persona.approval == "person" else self._promoted(persona, history, tainted, now)
        self._enter(persona, entry or self._given_up(persona, history, erased, now))

    def _given_up(
        self, persona: Persona, history: Sequence[RolloutEntry], erased: Mapping[str, Erased], now_unix_ms: int
    ) -> RolloutEntry | None:
        """Once a successor has been waited for long enough."""
        if not erased:
            return None
        late = [name for name, one in erased.items() if now_unix_ms - one.erased_unix_ms >= self._withdraw_ms]
        there = {ids.BASE_POLICY, *self._registry.ids()}
        served = {policy_id for entry in history for policy_id, _ in entry.shares}
        unusable = {*self._lineage.made_with(erased), *(served - there)}
        return give_up(persona, history, self._lineage.made_with(late), unusable, now_unix_ms)

    def _promoted(
        self, persona: Persona, history: Sequence[RolloutEntry], tainted: Collection[str], now_unix_ms: int
    ) -> RolloutEntry | None:
        candidates = [
            policy_id
            for policy_id in self._registry.ids(highest_number(history))
            if policy_id not in tainted and self._may_serve(policy_id, persona)
        ]
        return decide(persona, history, candidates, now_unix_ms)

    def _enter(self, persona: Persona, entry: RolloutEntry | None) -> None:
        if entry is None:
            return
        self._log.append(entry)
        metrics.ROLLOUT_ENTRIES.labels(persona.label, entry.author).inc()
        logger.info(
            "policy promoted" if entry.author == "gate" else "policy given up",
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
