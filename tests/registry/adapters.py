"""Small adapters and manifests to put into a registry."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from attune.keys import PolicySigner
from attune.registry.policies import PolicyManifest, Probe, Registry
from attune.registry.verdict import Check, Verdict

BASE = "b" * 64


def write_adapter(folder: Path, value: float = 0.5) -> Path:
    """A folder as PEFT writes it, with more in it than a policy consists of."""
    folder.mkdir(parents=True)
    names = ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "base_model.model.lm_head.lora_B.weight")
    save_file({name: np.full((4, 8), value, dtype=np.float32) for name in names}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    (folder / "README.md").write_text("written by PEFT")
    return folder


def manifest_of(policy_id: str, persona: str = "concierge", base_model_hash: str = BASE) -> PolicyManifest:
    return PolicyManifest(
        policy_id=policy_id,
        tenant="default",
        persona=persona,
        base_model_hash=base_model_hash,
        parent_policy_id="",
        dataset_ids=("d-1",),
        created_unix_ms=1_700_000_000_000,
        training={"learner": "kto", "learning_rate": 0.1, "nested": {"epochs": 2}},
        metrics={"heldout_margin_nats": 0.25, "steps": 12.0},
        probe=(Probe((1, 2), (3, 4), (-0.1, -1e-9), (-0.5, -2.0)),),
    )


def verdict_of(policy_id: str, passed: bool = True) -> Verdict:
    check = Check("heldout margin", passed, 0.25, 0.0, "held-out margin is 0.25 nats; more than 0 is wanted")
    return Verdict(policy_id, passed, (check,), 1_700_000_001_000)


def publish(
    registry: Registry,
    signer: PolicySigner,
    work: Path,
    *,
    passed: bool | None = True,
    persona: str = "concierge",
    base_model_hash: str = BASE,
    dataset_id: str = "d-1",
) -> str:
    """Claims and publishes a policy, with a verdict unless `passed` is None, and returns its id."""
    policy_id = registry.claim("default", persona)
    manifest = replace(manifest_of(policy_id, persona, base_model_hash), dataset_ids=(dataset_id,))
    registry.publish(manifest, write_adapter(work / policy_id, value=len(policy_id)), signer)
    if passed is not None:
        registry.write_verdict(verdict_of(policy_id, passed), signer)
    return policy_id
