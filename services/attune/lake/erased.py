"""Datasets that are gone, because a person in them asked for it or their time was over.

    datasets/<dataset_id>/erased.json    why and when; written first, then the manifest and the rows are deleted

Whoever comes across it knows that policies which were made with the dataset are to go as well (`by_request`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from attune import secret_files
from attune.errors import DataLoss
from attune.files import sync
from attune.lake.dataset import Dataset

_FILE = "erased.json"


@dataclass(frozen=True)
class Erased:
    """What is left of a dataset. `feedback_positions` are what it covered: that feedback is not new again."""

    dataset_id: str
    tenant: str
    persona: str
    recipe: str
    by_request: bool
    erased_unix_ms: int
    feedback_positions: Mapping[str, int]

    def made_for(self, tenant: str, persona: str, recipe: str) -> bool:
        return (self.tenant, self.persona, self.recipe) == (tenant, persona, recipe)


def erase_dataset(dataset: Dataset, *, by_request: bool, now_unix_ms: int) -> None:
    """Durably. Killed half-way and called again, or followed by `finish_erasing`, it ends right."""
    manifest = dataset.manifest
    erased = Erased(
        manifest.dataset_id,
        manifest.tenant,
        manifest.persona,
        manifest.recipe.name,
        by_request,
        now_unix_ms,
        manifest.feedback_positions,
    )
    secret_files.replace(dataset.folder / _FILE, json.dumps(asdict(erased), indent=1, sort_keys=True).encode())
    _delete_rows(dataset.folder)


def finish_erasing(datasets: Path) -> None:
    """What a process that was killed had begun."""
    for file in datasets.glob(f"d-*/{_FILE}"):
        _delete_rows(file.parent)


def list_erased(datasets: Path) -> dict[str, Erased]:
    """By the datasets' ids. Raises DataLoss for a damaged note."""
    found = {}
    for file in datasets.glob(f"d-*/{_FILE}"):
        try:
            found[file.parent.name] = Erased(**json.loads(file.read_text("utf-8")))
        except FileNotFoundError:
            continue
        except (ValueError, TypeError):
            raise DataLoss(f"{file} is damaged") from None
    return found


def erased_by_request(datasets: Path) -> dict[str, Erased]:
    """Those whose policies are to go."""
    return {name: erased for name, erased in list_erased(datasets).items() if erased.by_request}


def _delete_rows(folder: Path) -> None:
    """The manifest first: without it there is no dataset."""
    others = sorted((file for file in folder.iterdir() if file.name != _FILE), key=lambda file: file.suffix != ".json")
    for file in others:
        file.unlink(missing_ok=True)
    if others:
        sync(folder)
