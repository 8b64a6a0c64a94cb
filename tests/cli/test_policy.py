import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attune.chat.model import model_hash
from attune.cli.policy import policy_app
from attune.errors import AttuneError
from attune.settings import Settings
from tests.rollout.house import House, Service

MODEL = Settings().model_folder
BASE = model_hash(MODEL)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    for name in [name for name in os.environ if name.startswith("ATTUNE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATTUNE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    house = House.at(tmp_path / "data")
    house.personas()
    return house


@pytest.fixture
def service(house: House) -> Iterator[Service]:
    service = Service(house, MODEL)
    service.endpoints()
    yield service
    service.process.send_signal(signal.SIGKILL)
    service.process.wait()


def run(*arguments: str) -> str:
    outcome = CliRunner().invoke(policy_app, list(arguments), catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def refusal(*arguments: str) -> str:
    """What the command says when it fails; the main program prints it and exits with 1."""
    with pytest.raises(AttuneError) as caught:
        CliRunner().invoke(policy_app, list(arguments), catch_exceptions=False)
    assert "\n" not in caught.value.message
    return caught.value.message


def promote(house: House) -> str:
    policy_id = house.publish(base_model_hash=BASE)
    give_up = time.monotonic() + 30
    while house.entered()[-1:] != [policy_id]:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return policy_id


def test_an_operator_lists_looks_and_goes_back(house: House, service: Service) -> None:
    assert "base" in run("list")
    first, second = promote(house), promote(house)
    refused = house.publish(passed=False, base_model_hash=BASE)
    house.publish(persona="tutor", base_model_hash=BASE)

    rows = {line.split()[0]: line for line in run("list").splitlines() if line.strip()}
    assert list(rows)[-4:] == [refused, second, first, "base"]
    assert "100%" in rows[second]
    assert "passed" in rows[second]
    assert "100%" not in rows[first]
    assert "refused: heldout margin" in rows[refused]
    assert "p-000004" in run("list", "--persona", "tutor")

    shown = run("show", refused)
    assert "0.25" in shown
    assert "held-out margin is 0.25 nats; more than 0 is wanted" in shown
    assert "failed" in shown
    assert BASE in shown
    assert f"{second} passed the gate" in run("show")

    said = run("rollback", "--reason", "too [bold]chatty\x1b[2J")
    assert said == f"concierge: {first} has all traffic now (entry 3 of the rollout log)\n"
    shown = run("show")
    assert "too [bold]chatty�[2J" in shown
    assert "operator" in shown
    assert run("rollback", "base").startswith("concierge: base has all traffic")
    assert run("approve", second, "--reason", "read it").startswith(f"concierge: {second} has all traffic")


def test_a_ring_elsewhere_is_asked_by_its_address(
    house: House, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ("--server", f"127.0.0.1:{service.endpoints()['grpc']}")
    first, second = promote(house), promote(house)
    monkeypatch.setenv("ATTUNE_API_KEY", (house.data / "access" / "development.key").read_text().strip())
    monkeypatch.setenv("ATTUNE_DATA", str(tmp_path / "nothing-here"))

    assert second in run("list", *server)
    assert f"{second} passed the gate" in run("show", *server)
    assert run("rollback", *server).startswith(f"concierge: {first} has all traffic")
    assert run("approve", second, *server).startswith(f"concierge: {second} has all traffic")
    assert refusal("list", "--server", "127.0.0.1:1").startswith("cannot reach 127.0.0.1:1")


def test_what_cannot_be_done_is_said_in_a_sentence(house: House, service: Service) -> None:
    assert refusal("rollback") == "the base model has all traffic; nothing served before it"
    assert refusal("rollback", "p-000009") == "no policy p-000009"
    assert refusal("approve", "p-000009") == "no policy p-000009"
    assert refusal("approve", "base") == "policy_id is base; the base model needs no approval"
    assert refusal("rollback", "../x") == "a policy id looks like p-000007 (or base)"
    assert refusal("rollback", "--reason", "x" * 1001) == "reason has 1001 characters; at most 1000 are taken"
    assert refusal("list", "--persona", "nobody") == "no such persona"
    assert refusal("show", "p-7") == "a policy id looks like p-000007 (or base)"
    assert refusal("show", "p-000009") == "no policy p-000009 among the newest of persona concierge"


def test_without_a_running_ring_the_command_says_so_and_fails(house: House) -> None:
    command = [sys.executable, "-m", "attune.cli.main", "policy", "list"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 1
    assert outcome.stdout == ""
    start = f"start it with `attune up --data {house.data}`"
    assert outcome.stderr == f"attune: rollout is not running on {house.data}; {start}\n"


def test_an_exported_adapter_is_a_plain_peft_folder(house: House, tmp_path: Path) -> None:
    policy_id = house.publish(base_model_hash=BASE)
    house.promotion(BASE).turn()

    assert run("export", "out") == f"{policy_id} is in out\n"

    assert sorted(os.listdir(tmp_path / "out")) == ["adapter_config.json", "adapter_model.safetensors"]
    stored = house.data / "registry" / "policies" / policy_id / "adapter_model.safetensors"
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == stored.read_bytes()
    (tmp_path / "empty").mkdir()
    run("export", "empty", "--policy", policy_id)
    assert len(os.listdir(tmp_path / "empty")) == 2


def test_an_export_that_fails_leaves_nothing(house: House, tmp_path: Path) -> None:
    damaged = house.publish(base_model_hash=BASE)
    weights = house.data / "registry" / "policies" / damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    other = house.publish(base_model_hash="c" * 64)
    tutors = house.publish(base_model_hash=BASE, persona="tutor")
    before = sorted(os.listdir(tmp_path))

    assert "no adapter" in refusal("export", "out")
    assert "damaged" in refusal("export", "out", "--policy", damaged)
    assert "trained on base model cccccccccccc" in refusal("export", "out", "--policy", other, "--merged")
    assert "not of persona concierge" in refusal("export", "out", "--policy", tutors)
    assert refusal("export", "out", "--policy", "p-000077") == "no policy p-000077"
    assert sorted(os.listdir(tmp_path)) == before

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for target in ("full", "file"):
        assert "not empty" in refusal("export", target, "--policy", other)
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "keep"


def test_a_merged_export_answers_as_the_adapter_on_the_base_does(house: House, tmp_path: Path) -> None:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from attune.trainer.model import adapter_config, load_adapter, load_base, save_adapter
    from tests.registry.adapters import manifest_of

    torch.manual_seed(0)
    model = get_peft_model(load_base(MODEL, "float32"), adapter_config(4, 8))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if ".lora_B." in name:
                weights.normal_(std=0.1)
    save_adapter(model, tmp_path / "adapter")
    policy_id = house.registry.claim("default", "concierge")
    house.registry.publish(manifest_of(policy_id, base_model_hash=BASE), tmp_path / "adapter", house.signer)

    run("export", "merged", "--policy", policy_id, "--merged")
    run("export", "plain", "--policy", policy_id)
    run("export", "base", "--merged")

    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")("Call me a cab", return_tensors="pt").input_ids
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="float32")(tokens).logits
        plain = load_adapter(load_base(MODEL, "float32"), tmp_path / "plain", "any")(tokens).logits
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="float32")(tokens).logits
    assert torch.allclose(merged, plain, atol=1e-4)
    assert not torch.allclose(merged, base, atol=1e-1)


def test_help_is_quick_to_import() -> None:
    heavy = "[name for name in ('torch', 'transformers', 'grpc', 'pydantic', 'rich') if name in sys.modules]"
    code = f"import sys, attune.cli.policy; print({heavy})"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "[]\n"
