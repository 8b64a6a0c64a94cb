"""How cycles ended, kept so that a restarted trainer does not repeat them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from attune.errors import DataLoss
from attune.files import create_file, make_folder

Ending = Literal["passed", "refused", "skipped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How one dataset's cycle ended. Skipped and failed cycles have no policy."""

    dataset_id: str
    tenant: str
    persona: str
    outcome: Ending
    policy_id: str
    reason: str
    seconds: float
    created_unix_ms: int


class Outcomes:
    """`<folder>/<dataset_id>.json`, each created once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def record(self, outcome: Outcome) -> None:
        make_folder(self._folder)
        create_file(self._file(outcome.dataset_id), json.dumps(asdict(outcome), indent=2).encode())

    def read(self, dataset_id: str) -> Outcome | None:
        """Raises DataLoss for a damaged file: remove it, and the cycle runs again."""
        try:
            return Outcome(**json.loads(self._file(dataset_id).read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise DataLoss(f"cycles/{dataset_id}.json is damaged; remove it and the cycle runs again") from None

    def dataset_ids(self) -> frozenset[str]:
        return frozenset(file.stem for file in self._folder.glob("*.json"))

    def _file(self, dataset_id: str) -> Path:
        return self._folder / f"{dataset_id}.json"
