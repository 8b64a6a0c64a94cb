"""Which policies were made with a dataset."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from attune.keys import PolicySigner
from attune.registry.lineage import Lineage, made_with
from attune.registry.policies import PolicyManifest, Registry
from attune.registry.rollouts import RolloutEntry, RolloutLog
from attune.registry.withdrawal import withdraw_idle
from tests.registry.adapters import manifest_of, publish


def policy(number: int, datasets: Sequence[str], parent: int = 0) -> PolicyManifest:
    parent_id = f"p-{parent:06d}" if parent else ""
    return replace(manifest_of(f"p-{number:06d}"), dataset_ids=tuple(datasets), parent_policy_id=parent_id)


def test_descendants_of_a_policy_were_made_with_its_dataset_too() -> None:
    manifests = [policy(1, ["d-a"]), policy(2, ["d-b"], parent=1), policy(3, ["d-b"], parent=2), policy(4, ["d-b"])]
    assert made_with(manifests, {"d-a"}) == {"p-000001", "p-000002", "p-000003"}
    assert made_with(reversed(manifests), {"d-a"}) == {"p-000001", "p-000002", "p-000003"}
    assert made_with(manifests, {"d-c"}) == set()


def test_what_serves_is_withdrawn_once_it_does_not(tmp_path: Path) -> None:
    signer = PolicySigner.load_or_create(tmp_path / "keys")
    registry, log = Registry(tmp_path, signer.verifier()), RolloutLog(tmp_path)
    first, second = (publish(registry, signer, tmp_path / "work") for _ in range(2))
    log.append(RolloutEntry(1, "default", "concierge", ((second, 1.0),), "gate", "", 1))
    tainted = Lineage(registry).made_with({"d-1"})
    assert list(tainted) == [first, second]
    assert withdraw_idle(registry, log, tainted) == [first]
    log.append(RolloutEntry(2, "default", "concierge", (("base", 1.0),), "erasure", "", 1))
    assert withdraw_idle(registry, log, Lineage(registry).made_with({"d-1"})) == [second]
