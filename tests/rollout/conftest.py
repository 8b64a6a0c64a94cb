from dataclasses import dataclass
from pathlib import Path

import pytest

from attune.keys import PolicySigner
from attune.personas.persona import Persona
from attune.registry.policies import Registry
from attune.registry.rollouts import RolloutLog
from attune.rollout.promotion import Promotion
from tests.registry.adapters import BASE, publish

PERSONAS = {name: Persona(name=name, system_prompt="Answer.") for name in ("concierge", "tutor")}


@dataclass(frozen=True)
class House:
    """A data folder with a registry, and the trainer's key."""

    data: Path
    signer: PolicySigner
    registry: Registry
    log: RolloutLog

    def publish(self, *, passed: bool | None = True, persona: str = "concierge", base_model_hash: str = BASE) -> str:
        work = self.data / "work"
        return publish(
            self.registry, self.signer, work, passed=passed, persona=persona, base_model_hash=base_model_hash
        )

    def promotion(self) -> Promotion:
        return Promotion(self.registry, self.log, tuple(PERSONAS.values()), base_model_hash=BASE)

    def entered(self, persona: str = "concierge") -> list[str]:
        return [entry.main_policy_id for entry in self.log.history("default", persona)]


@pytest.fixture
def house(tmp_path: Path) -> House:
    signer = PolicySigner.load_or_create(tmp_path / "keys")
    folder = tmp_path / "registry"
    return House(tmp_path, signer, Registry(folder, signer.verifier()), RolloutLog(folder))
