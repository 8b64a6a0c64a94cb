"""Which policies were made with a dataset, by themselves or because one that they continued was."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from attune.errors import AttuneError
from attune.registry.policies import PolicyManifest, Registry


def made_with(manifests: Iterable[PolicyManifest], datasets: Collection[str]) -> set[str]:
    """The closure over parents."""
    by_id: Mapping[str, PolicyManifest] = {manifest.policy_id: manifest for manifest in manifests}
    tainted = {one.policy_id for one in by_id.values() if not set(one.dataset_ids).isdisjoint(datasets)}
    while more := {one.policy_id for one in by_id.values() if one.parent_policy_id in tainted} - tainted:
        tainted |= more
    return tainted


@dataclass
class Lineage:
    """Remembers manifests, which never change, so that looking often is cheap."""

    registry: Registry
    _manifests: dict[str, PolicyManifest] = field(default_factory=dict)

    def made_with(self, datasets: Collection[str]) -> dict[str, PolicyManifest]:
        """Finished policies that were made with one of these datasets, by id; damaged ones are passed by."""
        if not datasets:
            return {}
        there = self.registry.ids()
        self._manifests = {name: manifest for name, manifest in self._manifests.items() if name in there}
        for policy_id in there:
            if policy_id not in self._manifests:
                try:
                    self._manifests[policy_id] = self.registry.read(policy_id)
                except AttuneError:
                    continue
        tainted = made_with(self._manifests.values(), datasets)
        return {policy_id: self._manifests[policy_id] for policy_id in sorted(tainted)}
