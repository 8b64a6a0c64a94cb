"""A data folder with a registry, and the rollout service on it."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from attune.errors import Unavailable
from attune.keys import PolicySigner
from attune.personas import Personas
from attune.registry.policies import Registry
from attune.registry.rollouts import RolloutLog
from attune.rollout.promotion import Promotion
from attune.runtime import read_endpoints
from tests.persona_files import stored
from tests.registry.adapters import BASE, publish

PERSONAS = dict.fromkeys(("concierge", "tutor"), 'system_prompt = "Answer."')


@dataclass(frozen=True)
class House:
    """A data folder with a registry, and the trainer's key."""

    data: Path
    signer: PolicySigner
    registry: Registry
    log: RolloutLog

    def publish(
        self,
        *,
        passed: bool | None = True,
        persona: str = "concierge",
        base_model_hash: str = BASE,
        dataset_id: str = "d-1",
    ) -> str:
        work = self.data / "work"
        return publish(
            self.registry,
            self.signer,
            work,
            passed=passed,
            persona=persona,
            base_model_hash=base_model_hash,
            dataset_id=dataset_id,
        )

    def promotion(self, base_model_hash: str = BASE) -> Promotion:
        return Promotion(
            self.registry,
            self.log,
            self.personas(),
            base_model_hash=base_model_hash,
            datasets=self.data / "datasets",
            withdraw_hours=24,
        )

    def personas(self) -> Personas:
        return stored(self.data, PERSONAS)

    def entered(self, persona: str = "concierge") -> list[str]:
        return [entry.main_policy_id for entry in self.log.history("default", persona)]

    @classmethod
    def at(cls, data: Path) -> "House":
        signer = PolicySigner.load_or_create(data / "keys")
        folder = data / "registry"
        return cls(data, signer, Registry(folder, signer.verifier()), RolloutLog(folder))


class Service:
    """The real process on the house's data folder."""

    def __init__(self, house: House, model: Path) -> None:
        self._data = house.data
        environment = {name: text for name, text in os.environ.items() if not name.startswith("ATTUNE_")} | {
            "ATTUNE_DATA": str(house.data),
            "ATTUNE_MODEL": str(model),
            "ATTUNE_ROLLOUT__GRPC_PORT": "0",
            "ATTUNE_ROLLOUT__METRICS_PORT": "0",
            "ATTUNE_ROLLOUT__POLL_SECONDS": "0.05",
        }
        self.process = subprocess.Popen([sys.executable, "-m", "attune.rollout.main"], env=environment)

    def endpoints(self) -> dict[str, int]:
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            assert self.process.poll() is None
            try:
                endpoints = read_endpoints(self._data, "rollout")
            except Unavailable:
                endpoints = {}
            if endpoints.get("pid") == self.process.pid:
                return endpoints
            time.sleep(0.05)
        raise TimeoutError
