import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from attune.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidInput, NotFound
from attune.keys import PolicySigner
from attune.registry.fields import canonical_json
from attune.registry.policies import MAX_MANIFEST_BYTES, Registry
from tests.registry.adapters import BASE, manifest_of, publish, verdict_of, write_adapter


@pytest.fixture
def signer(tmp_path: Path) -> PolicySigner:
    return PolicySigner.load_or_create(tmp_path / "keys")


@pytest.fixture
def registry(tmp_path: Path, signer: PolicySigner) -> Registry:
    return Registry(tmp_path / "registry", signer.verifier())


def folder_of(tmp_path: Path, policy_id: str) -> Path:
    return tmp_path / "registry" / "policies" / policy_id


def test_a_published_policy_comes_back_as_it_was(registry: Registry, signer: PolicySigner, tmp_path: Path) -> None:
    policy_id = publish(registry, signer, tmp_path)

    manifest = registry.verify(policy_id, base_model_hash=BASE)

    assert policy_id == "p-000001"
    assert replace(manifest, files={}, signature="") == manifest_of(policy_id)
    assert registry.list("default", "concierge") == (manifest,)
    assert registry.read_verdict(policy_id) == verdict_of(policy_id)


def test_each_claim_gets_an_id_of_its_own(registry: Registry) -> None:
    with ThreadPoolExecutor(16) as threads:
        claimed = list(threads.map(lambda _: registry.claim("default", "concierge"), range(64)))

    assert sorted(claimed) == [f"p-{number:06d}" for number in range(1, 65)]


def test_a_claim_that_was_given_up_is_not_listed_and_never_given_again(
    registry: Registry, signer: PolicySigner, tmp_path: Path
) -> None:
    given_up = registry.claim("default", "concierge")
    write_adapter(tmp_path / "a")
    (folder_of(tmp_path, given_up) / "adapter_model.safetensors").write_bytes(b"half")

    policy_id = publish(registry, signer, tmp_path / "work")

    assert policy_id != given_up
    assert registry.ids() == (policy_id,)
    with pytest.raises(NotFound):
        registry.read(given_up)


def test_publishing_again_after_a_crash_replaces_what_was_half_written(
    registry: Registry, signer: PolicySigner, tmp_path: Path
) -> None:
    policy_id = registry.claim("default", "concierge")
    folder = folder_of(tmp_path, policy_id)
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    (folder / ".draft-adapter_config.json").write_bytes(b"ha")

    manifest = registry.publish(manifest_of(policy_id), write_adapter(tmp_path / "a"), signer)
    registry.write_verdict(verdict_of(policy_id), signer)

    assert registry.verify(policy_id, base_model_hash=BASE) == manifest
    with pytest.raises(AlreadyExists):
        registry.publish(manifest_of(policy_id), tmp_path / "a", signer)
    with pytest.raises(AlreadyExists):
        registry.write_verdict(verdict_of(policy_id, passed=False), signer)


def test_only_the_persona_that_claimed_an_id_publishes_under_it(
    registry: Registry, signer: PolicySigner, tmp_path: Path
) -> None:
    policy_id = registry.claim("default", "tutor")
    with pytest.raises(FailedPrecondition, match="another persona"):
        registry.publish(manifest_of(policy_id), write_adapter(tmp_path / "a"), signer)


def test_personas_do_not_see_each_others_policies(registry: Registry, signer: PolicySigner, tmp_path: Path) -> None:
    mine = publish(registry, signer, tmp_path)
    publish(registry, signer, tmp_path, persona="tutor")

    assert [manifest.policy_id for manifest in registry.list("default", "concierge")] == [mine]


@pytest.mark.parametrize(
    "policy_id",
    [
        "",
        "-",
        "p-1",
        "p-0000001",
        "P-000001",
        "p-000000",
        "p-000001\0",
        "p-000001\n",
        "p-٠٠٠٠٠١",
        "p-" + "9" * 400,
        "../p-000001",
        "/etc/passwd",
        "p-000001/../p-000001",
        "https://example.org/p-000001",
    ],
)
def test_what_is_no_policy_id_is_refused_before_any_file_is_touched(registry: Registry, policy_id: str) -> None:
    with pytest.raises(InvalidInput):
        registry.verify(policy_id, base_model_hash=BASE)


def test_a_policy_that_is_not_there_is_not_found(registry: Registry) -> None:
    for policy_id in ("p-000001", "base"):
        with pytest.raises(NotFound):
            registry.verify(policy_id, base_model_hash=BASE)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "manifest.json", "verdict.json"])
def test_a_flipped_bit_anywhere_is_found(registry: Registry, signer: PolicySigner, tmp_path: Path, name: str) -> None:
    policy_id = publish(registry, signer, tmp_path)
    file = folder_of(tmp_path, policy_id) / name
    whole = file.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 150)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        with pytest.raises(DataLoss):
            registry.verify(policy_id, base_model_hash=BASE)
    file.write_bytes(whole)
    registry.verify(policy_id, base_model_hash=BASE)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "manifest.json", "verdict.json"])
def test_a_file_that_is_cut_short_is_damage(
    registry: Registry, signer: PolicySigner, tmp_path: Path, name: str
) -> None:
    policy_id = publish(registry, signer, tmp_path)
    file = folder_of(tmp_path, policy_id) / name
    whole = file.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DataLoss):
            registry.verify(policy_id, base_model_hash=BASE)


def test_a_missing_file_is_damage(registry: Registry, signer: PolicySigner, tmp_path: Path) -> None:
    policy_id = publish(registry, signer, tmp_path)
    (folder_of(tmp_path, policy_id) / "adapter_model.safetensors").unlink()
    with pytest.raises(DataLoss, match="missing"):
        registry.verify(policy_id, base_model_hash=BASE)


def test_a_policy_that_another_trainer_signed_is_refused(registry: Registry, tmp_path: Path) -> None:
    stranger = PolicySigner.load_or_create(tmp_path / "other-keys")
    policy_id = publish(Registry(tmp_path / "registry", stranger.verifier()), stranger, tmp_path)

    with pytest.raises(DataLoss, match="not signed"):
        registry.verify(policy_id, base_model_hash=BASE)
    assert registry.list("default", "concierge") == ()


def test_a_policy_moved_to_another_id_is_refused(registry: Registry, signer: PolicySigner, tmp_path: Path) -> None:
    policy_id = publish(registry, signer, tmp_path)
    folder_of(tmp_path, policy_id).rename(folder_of(tmp_path, "p-000009"))
    with pytest.raises(DataLoss, match="another policy's"):
        registry.verify("p-000009", base_model_hash=BASE)


def test_an_ungated_policy_does_not_serve(registry: Registry, signer: PolicySigner, tmp_path: Path) -> None:
    unjudged = publish(registry, signer, tmp_path, passed=None)
    refused = publish(registry, signer, tmp_path, passed=False)

    with pytest.raises(FailedPrecondition, match="no verdict"):
        registry.verify(unjudged, base_model_hash=BASE)
    with pytest.raises(FailedPrecondition, match="did not pass"):
        registry.verify(refused, base_model_hash=BASE)
    assert registry.check(refused).policy_id == refused


def test_a_policy_for_another_base_model_does_not_serve(
    registry: Registry, signer: PolicySigner, tmp_path: Path
) -> None:
    policy_id = publish(registry, signer, tmp_path)
    with pytest.raises(FailedPrecondition, match="base model"):
        registry.verify(policy_id, base_model_hash="c" * 64)


def test_a_verdict_that_nobody_signed_does_not_let_a_policy_through(
    registry: Registry, signer: PolicySigner, tmp_path: Path
) -> None:
    policy_id = publish(registry, signer, tmp_path, passed=None)
    injected = {**verdict_of(policy_id).to_json(), "manifest_sha256": "0" * 64, "signature": "00" * 64}
    (folder_of(tmp_path, policy_id) / "verdict.json").write_bytes(canonical_json(injected))

    with pytest.raises(DataLoss, match="not signed"):
        registry.verify(policy_id, base_model_hash=BASE)


def test_another_policys_verdict_does_not_let_a_policy_through(
    registry: Registry, signer: PolicySigner, tmp_path: Path
) -> None:
    passed = publish(registry, signer, tmp_path)
    unjudged = publish(registry, signer, tmp_path, passed=None)
    verdict = (folder_of(tmp_path, passed) / "verdict.json").read_bytes()
    (folder_of(tmp_path, unjudged) / "verdict.json").write_bytes(verdict)

    with pytest.raises(DataLoss, match="another policy"):
        registry.verify(unjudged, base_model_hash=BASE)


def test_a_manifests_signature_is_no_verdicts_signature(
    registry: Registry, signer: PolicySigner, tmp_path: Path
) -> None:
    policy_id = publish(registry, signer, tmp_path)
    folder = folder_of(tmp_path, policy_id)
    (folder / "verdict.json").write_bytes((folder / "manifest.json").read_bytes())
    with pytest.raises(DataLoss, match="not signed"):
        registry.verify(policy_id, base_model_hash=BASE)


def test_a_link_to_a_policy_is_refused(registry: Registry, signer: PolicySigner, tmp_path: Path) -> None:
    policy_id = publish(registry, signer, tmp_path)
    folder = folder_of(tmp_path, policy_id)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match="link"):
        registry.verify(policy_id, base_model_hash=BASE)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "manifest.json", "verdict.json", "claim.json"]
)
def test_a_link_in_a_policys_folder_is_refused(
    registry: Registry, signer: PolicySigner, tmp_path: Path, name: str
) -> None:
    policy_id = publish(registry, signer, tmp_path)
    file = folder_of(tmp_path, policy_id) / name
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataLoss):
        registry.verify(policy_id, base_model_hash=BASE)


def test_what_does_not_belong_in_a_policys_folder_is_refused(
    registry: Registry, signer: PolicySigner, tmp_path: Path
) -> None:
    policy_id = publish(registry, signer, tmp_path)
    folder = folder_of(tmp_path, policy_id)

    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(DataLoss, match="belongs to no policy"):
        registry.verify(policy_id, base_model_hash=BASE)
    (folder / "pytorch_model.bin").unlink()

    (folder / "inner").mkdir()
    with pytest.raises(DataLoss, match="no plain file"):
        registry.verify(policy_id, base_model_hash=BASE)
    (folder / "inner").rmdir()

    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(DataLoss, match="no plain file"):
        registry.verify(policy_id, base_model_hash=BASE)


def test_what_is_no_adapter_is_not_published(registry: Registry, signer: PolicySigner, tmp_path: Path) -> None:
    policy_id = registry.claim("default", "concierge")
    adapter = write_adapter(tmp_path / "a")
    weights = (adapter / "adapter_model.safetensors").read_bytes()

    (adapter / "adapter_model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(DataLoss, match="not valid safetensors"):
        registry.publish(manifest_of(policy_id), adapter, signer)

    (adapter / "adapter_model.safetensors").write_bytes(weights.replace(b".lora_A.", b".xxxx_A."))
    with pytest.raises(DataLoss, match="no LoRA weights"):
        registry.publish(manifest_of(policy_id), adapter, signer)

    (adapter / "adapter_model.safetensors").write_bytes(weights)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "PROMPT_TUNING", "r": 4}))
    with pytest.raises(DataLoss, match="LoRA adapter"):
        registry.publish(manifest_of(policy_id), adapter, signer)

    (adapter / "adapter_config.json").unlink()
    with pytest.raises(DataLoss, match="missing"):
        registry.publish(manifest_of(policy_id), adapter, signer)
    assert registry.ids() == ()


def test_a_manifest_over_its_limit_is_neither_written_nor_read(
    registry: Registry, signer: PolicySigner, tmp_path: Path
) -> None:
    policy_id = registry.claim("default", "concierge")
    huge = replace(manifest_of(policy_id), training={"text": "x" * MAX_MANIFEST_BYTES})
    with pytest.raises(InvalidInput, match="at most"):
        registry.publish(huge, write_adapter(tmp_path / "a"), signer)
    assert registry.ids() == ()

    (folder_of(tmp_path, policy_id) / "manifest.json").write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(DataLoss, match="longer than"):
        registry.read(policy_id)


def test_figures_that_are_no_numbers_are_not_published(
    registry: Registry, signer: PolicySigner, tmp_path: Path
) -> None:
    policy_id = registry.claim("default", "concierge")
    with pytest.raises(InvalidInput):
        registry.publish(
            replace(manifest_of(policy_id), metrics={"loss": float("nan")}), write_adapter(tmp_path / "a"), signer
        )


@pytest.mark.parametrize("content", [b"[]", b"{}", b"[" * 200_000, b'{"policy_id": 1e999}', b"\xff\xfe", b"1" * 10_000])
def test_a_manifest_that_is_no_manifest_is_damage(
    registry: Registry, signer: PolicySigner, tmp_path: Path, content: bytes
) -> None:
    policy_id = publish(registry, signer, tmp_path)
    (folder_of(tmp_path, policy_id) / "manifest.json").write_bytes(content)
    with pytest.raises(DataLoss):
        registry.verify(policy_id, base_model_hash=BASE)


def test_a_manifest_with_fields_of_a_later_version_is_read(
    registry: Registry, signer: PolicySigner, tmp_path: Path
) -> None:
    policy_id = publish(registry, signer, tmp_path, passed=None)
    file = folder_of(tmp_path, policy_id) / "manifest.json"
    values = json.loads(file.read_bytes()) | {"later": {"field": [1, 2.5]}}
    del values["signature"]
    signature = signer.sign(b"attune policy manifest\n" + canonical_json(values)).hex()
    file.write_text(json.dumps(values | {"signature": signature}, indent=1))

    assert registry.check(policy_id).policy_id == policy_id


def test_an_adapter_that_is_damaged_while_it_is_copied_leaves_nothing(
    registry: Registry, signer: PolicySigner, tmp_path: Path
) -> None:
    policy_id = publish(registry, signer, tmp_path)
    manifest = registry.verify(policy_id, base_model_hash=BASE)
    registry.copy_out(manifest, tmp_path / "copies" / "whole")
    assert sorted(os.listdir(tmp_path / "copies" / "whole")) == ["adapter_config.json", "adapter_model.safetensors"]

    weights = folder_of(tmp_path, policy_id) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DataLoss):
        registry.copy_out(manifest, tmp_path / "copies" / "damaged")
    assert os.listdir(tmp_path / "copies") == ["whole"]


def test_one_damaged_policy_does_not_hide_the_others(registry: Registry, signer: PolicySigner, tmp_path: Path) -> None:
    damaged, whole = publish(registry, signer, tmp_path), publish(registry, signer, tmp_path)
    (folder_of(tmp_path, damaged) / "manifest.json").write_bytes(b"{")
    assert [manifest.policy_id for manifest in registry.list("default", "concierge")] == [whole]


_PUBLISH_FOR_EVER = """
import sys
from pathlib import Path
from attune.keys import PolicySigner
from attune.registry.policies import Registry
from tests.registry.adapters import publish
root = Path(sys.argv[1])
signer = PolicySigner.load_or_create(root / "keys")
registry = Registry(root / "registry", signer.verifier())
for number in range(10_000):
    print(publish(registry, signer, root / "work" / sys.argv[2] / str(number)), flush=True)
"""


def test_whatever_is_listed_after_a_kill_is_whole(registry: Registry, tmp_path: Path) -> None:
    told: list[str] = []
    for run in range(4):
        publisher = subprocess.Popen(
            [sys.executable, "-c", _PUBLISH_FOR_EVER, str(tmp_path), str(run)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert publisher.stdout is not None
        told += [publisher.stdout.readline().strip() for _ in range(5 + run)]
        publisher.send_signal(signal.SIGKILL)
        told += publisher.stdout.read().split()
        publisher.wait()

    assert len(told) == len(set(told)) >= 26
    listed = registry.ids()
    assert set(told) <= set(listed)
    for policy_id in listed:
        registry.check(policy_id)
    for policy_id in told:
        registry.verify(policy_id, base_model_hash=BASE)
    assert len(set(listed) - set(told)) <= 4  # finished, and killed before it was told


def test_a_withdrawn_policy_is_gone_and_its_id_is_never_given_again(tmp_path: Path) -> None:
    signer = PolicySigner.load_or_create(tmp_path / "keys")
    registry = Registry(tmp_path / "registry", signer.verifier())
    policy_id = publish(registry, signer, tmp_path / "work")
    registry.withdraw(policy_id)
    registry.withdraw(policy_id)
    with pytest.raises(NotFound):
        registry.read(policy_id)
    folder = tmp_path / "registry" / "policies" / policy_id
    assert [file.name for file in folder.iterdir()] == ["claim.json"]
    assert registry.ids() == ()
    assert registry.claim("default", "concierge") == "p-000002"
