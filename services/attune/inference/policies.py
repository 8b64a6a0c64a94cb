"""Which policy serves whom: follows the rollout log, and keeps the engine's adapters in step with it."""

import asyncio
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from attune import metrics
from attune.errors import (
    AttuneError,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from attune.ids import BASE_POLICY, policy_number
from attune.inference.engine import Adapter, Engine
from attune.inference.swapgate import Reading, judge_probe
from attune.personas import Persona, Personas
from attune.registry.policies import PolicyManifest, Registry
from attune.registry.rollouts import RolloutEntry, RolloutLog
from attune.runtime import pause

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_SWAP_SECONDS = 60.0
_RETRY_SECONDS = 5.0
# An engine step that was under way when an adapter was removed may still look for its files.
_KEEP_FILES_SECONDS = 5.0

# What another try may change; everything else waits for the next entry.
_PASSING = (Unavailable, ResourceExhausted, DeadlineExceeded)


@dataclass
class _Loaded:
    """A policy in the engine, and how many streams use it."""

    adapter: Adapter
    leases: int = 0


class Lease:
    """A stream's hold on a policy: while it lasts, the adapter stays in the engine."""

    def __init__(self, policy_id: str, loaded: _Loaded | None) -> None:
        self.policy_id = policy_id
        self._loaded = loaded
        self._held = True
        if loaded is not None:
            loaded.leases += 1

    @property
    def adapter(self) -> Adapter | None:
        return None if self._loaded is None else self._loaded.adapter

    def release(self) -> None:
        """To be called once the engine's request has ended; does nothing the second time."""
        if self._held and self._loaded is not None:
            self._loaded.leases -= 1
        self._held = False


@dataclass(frozen=True)
class _Serving:
    """What a persona's new requests are answered by: (policy, its part of the traffic)."""

    number: int = 0
    shares: tuple[tuple[str, float], ...] = ((BASE_POLICY, 1.0),)


@dataclass
class _Watch:
    """What is known of a persona's rollout log."""

    # The newest entry that was decided on, served or refused.
    decided: int = 0
    retry_at_seconds: float = 0.0
    serving: _Serving = field(default_factory=_Serving)


class Policies:
    """The policies in service. One task calls `refresh` again and again; requests take leases. For one event loop.

    An entry whose policies do not all verify, load and pass the swap gate is refused: what served before goes on
    serving. At the start the newest entry that can be served is.
    """

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        rollouts: RolloutLog,
        personas: Personas,
        *,
        base_model_hash: str,
        adapters: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._rollouts = rollouts
        self._personas = personas
        self._base_model_hash = base_model_hash
        self._adapters = adapters
        self._clock = clock
        self._watches: dict[tuple[str, str], _Watch] = {}
        self._loaded: dict[str, _Loaded] = {}
        self._retiring: list[_Loaded] = []
        self._removed: list[tuple[float, Path]] = []
        for persona in personas:
            self._watch(persona)

    def lease(self, persona: Persona, conversation_id: str, *, pinned: str = "") -> Lease:
        """Picks the policy for a conversation; the same one as long as the shares are the same.

        A pinned policy is taken as it is. Raises NotFound when the persona has none of that id, and FailedPrecondition
        when it is not in the engine.
        """
        if pinned:
            return self._lease_pinned(persona, pinned)
        shares = self.serving(persona)
        policy_id = shares[0][0] if len(shares) == 1 else _pick(shares, f"{persona.name}\0{conversation_id}")
        return Lease(policy_id, self._loaded.get(policy_id))

    def _lease_pinned(self, persona: Persona, policy_id: str) -> Lease:
        if policy_id == BASE_POLICY:
            return Lease(policy_id, None)
        manifest = self._registry.read(policy_id)
        if (manifest.tenant, manifest.persona) != (persona.tenant, persona.name):
            raise NotFound(f"no policy {policy_id}", field="policy_id")
        loaded = self._loaded.get(policy_id)
        if loaded is None:
            raise FailedPrecondition(f"{policy_id} is not in the engine; only policies of the rollout are")
        return Lease(policy_id, loaded)

    def serving(self, persona: Persona) -> tuple[tuple[str, float], ...]:
        """What new requests are answered by: (policy, its part of the traffic)."""
        return self._watch(persona).serving.shares

    def _watch(self, persona: Persona) -> _Watch:
        """Of a persona that is new, the base model answers until its log was looked at."""
        key = persona.tenant, persona.name
        if key not in self._watches:
            self._watches[key] = _Watch()
            metrics.POLICY_IN_SERVICE.labels(persona.label).set(0)
        return self._watches[key]

    async def run(self, stopping: asyncio.Event) -> None:
        """Follows the log until told to stop."""
        while not stopping.is_set():
            await self.refresh()
            await pause(stopping, _POLL_SECONDS)

    async def refresh(self) -> None:
        """One look at every persona's log, then takes out what nobody uses. Raises nothing that is of one policy."""
        for persona in self._personas:
            try:
                await self._follow(persona)
            except AttuneError as error:
                # The log itself is damaged; each look says so again only after a pause.
                watch = self._watch(persona)
                watch.retry_at_seconds = self._clock() + _RETRY_SECONDS
                logger.error("rollout log unreadable", extra={"persona": persona.name, "reason": error.message})
        await self._retire()

    async def unload_all(self) -> None:
        """Takes every adapter out that no stream uses; personas are served by the base model from then on."""
        for watch in self._watches.values():
            watch.serving = _Serving()
        await self._retire()

    def clear(self) -> None:
        """Deletes the private copies of adapters: at the start those of earlier runs, at the end all."""
        shutil.rmtree(self._adapters, ignore_errors=True)

    async def _follow(self, persona: Persona) -> None:
        watch = self._watch(persona)
        if self._clock() < watch.retry_at_seconds:
            return
        seen = self._clock()
        current = await asyncio.to_thread(self._rollouts.current, persona.tenant, persona.name)
        if current is None or current.number <= watch.decided:
            return
        for entry in await self._candidates(persona, current, first=watch.decided == 0):
            try:
                await self._serve(persona, entry)
            except _PASSING as error:
                watch.retry_at_seconds = self._clock() + _RETRY_SECONDS
                self._refuse(persona, entry, "failed", error)
                return
            except AttuneError as error:
                self._refuse(persona, entry, "refused", error)
                continue
            metrics.SWAPS.labels(persona.label, "served").inc()
            metrics.SWAP_SECONDS.labels(persona.label).observe(self._clock() - seen)
            break
        watch.decided = current.number

    async def _candidates(self, persona: Persona, current: RolloutEntry, *, first: bool) -> Iterable[RolloutEntry]:
        """The newest entry; at the start, what to fall back on too."""
        if not first or current.number == 1:
            return (current,)
        try:
            history = await asyncio.to_thread(self._rollouts.history, persona.tenant, persona.name)
        except AttuneError:
            return (current,)
        return reversed(history)

    def _refuse(self, persona: Persona, entry: RolloutEntry, outcome: str, error: AttuneError) -> None:
        metrics.SWAPS.labels(persona.label, outcome).inc()
        logger.error(
            "rollout entry not served",
            extra={
                "persona": persona.name,
                "number": entry.number,
                "policy_ids": [policy_id for policy_id, _ in entry.shares],
                "reason": error.message,
                "serving": [policy_id for policy_id, _ in self.serving(persona)],
            },
        )

    async def _serve(self, persona: Persona, entry: RolloutEntry) -> None:
        for policy_id, _ in entry.shares:
            if policy_id != BASE_POLICY and policy_id not in self._loaded:
                self._loaded[policy_id] = await self._put_in(persona, policy_id)
        self._watch(persona).serving = _Serving(entry.number, entry.shares)
        metrics.POLICY_IN_SERVICE.labels(persona.label).set(policy_number(entry.main_policy_id))
        metrics.POLICIES_LOADED.set(len(self._loaded) + len(self._retiring))
        logger.info(
            "rollout entry serving", extra={"persona": persona.name, "number": entry.number, "shares": entry.shares}
        )

    async def _put_in(self, persona: Persona, policy_id: str) -> _Loaded:
        """Verifies, copies, loads and probes; on any failure nothing of it is left in use."""
        held = len(self._loaded) + len(self._retiring)
        if held >= self._engine.max_adapters:
            raise ResourceExhausted(f"the engine holds {held} policies; engine.max_loras is the limit")
        adapter = self._engine.adapter(policy_id, self._adapters)
        try:
            manifest = await asyncio.to_thread(self._fetch, persona, policy_id, adapter.folder)
        except OSError as error:
            raise Unavailable(f"{policy_id} cannot be copied: {error.strerror}") from error
        loaded = _Loaded(adapter)
        try:
            async with asyncio.timeout(_SWAP_SECONDS):
                await self._engine.load(adapter)
                difference = await self._probe(manifest, adapter)
        except TimeoutError:
            self._retiring.append(loaded)
            raise DeadlineExceeded(f"{policy_id} did not load and answer in {_SWAP_SECONDS:g} s") from None
        except AttuneError:
            self._retiring.append(loaded)
            raise
        except Exception as error:
            self._retiring.append(loaded)
            raise FailedPrecondition(f"{policy_id} does not run in the engine: {type(error).__name__}") from error
        logger.info("policy loaded", extra={"policy_id": policy_id, "probe_difference_nats": round(difference, 5)})
        return loaded

    def _fetch(self, persona: Persona, policy_id: str, folder: Path) -> PolicyManifest:
        manifest = self._registry.verify(policy_id, base_model_hash=self._base_model_hash)
        if (manifest.tenant, manifest.persona) != (persona.tenant, persona.name):
            raise FailedPrecondition(f"{policy_id} is a policy of another persona")
        self._registry.copy_out(manifest, folder)
        return manifest

    async def _probe(self, manifest: PolicyManifest, adapter: Adapter) -> float:
        readings = []
        for probe in manifest.probe:
            tokens = probe.prompt_token_ids, probe.output_token_ids
            readings.append(
                Reading(
                    engine_policy=await self._engine.score(*tokens, adapter=adapter),
                    engine_base=await self._engine.score(*tokens, adapter=None),
                    trainer_policy=probe.logprobs,
                )
            )
        return judge_probe(manifest.policy_id, readings)

    async def _retire(self) -> None:
        """Takes out the adapters that no persona serves and no stream uses; deletes files a while later."""
        serving = {policy_id for watch in self._watches.values() for policy_id, _ in watch.serving.shares}
        for policy_id in [policy_id for policy_id in self._loaded if policy_id not in serving]:
            self._retiring.append(self._loaded.pop(policy_id))
        for loaded in [loaded for loaded in self._retiring if loaded.leases == 0]:
            try:
                async with asyncio.timeout(_SWAP_SECONDS):
                    await self._engine.unload(loaded.adapter)
            except Exception as error:  # noqa: BLE001 - a dead engine holds nothing; any other is asked again
                logger.warning(
                    "policy not unloaded",
                    extra={"policy_id": loaded.adapter.policy_id, "error": type(error).__name__},
                )
                continue
            self._retiring.remove(loaded)
            self._removed.append((self._clock(), loaded.adapter.folder))
            logger.info("policy unloaded", extra={"policy_id": loaded.adapter.policy_id})
        metrics.POLICIES_LOADED.set(len(self._loaded) + len(self._retiring))
        while self._removed and self._clock() - self._removed[0][0] >= _KEEP_FILES_SECONDS:
            await asyncio.to_thread(shutil.rmtree, self._removed.pop(0)[1], ignore_errors=True)


def _pick(shares: tuple[tuple[str, float], ...], who: str) -> str:
    """The same of the shares for the same `who`; over many, in proportion."""
    point = int.from_bytes(hashlib.sha256(who.encode()).digest()[:8], "big") / 2**64
    for policy_id, share in shares:
        point -= share
        if point < 0:
            return policy_id
    return shares[-1][0]
