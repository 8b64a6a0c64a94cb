from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from attune.errors import NotFound
from attune.trainer.logprobs import token_logprobs
from attune.trainer.model import (
    TRAINED,
    adapter_config,
    answering_as,
    export_policy,
    load_adapter,
    load_base,
    save_adapter,
)

PAIRS = [([2, 3, 4], [5, 6, 1]), ([7], [8, 1])]


def scores(model: torch.nn.Module) -> np.ndarray:
    return np.concatenate(token_logprobs(model, PAIRS))


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes answers a lot."""
    torch.manual_seed(1)
    model = get_peft_model(load_base(tiny_model, "float32"), adapter_config(4, 8))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(model, folder)
    return folder


def test_an_adapter_is_two_files_that_name_no_path(adapter: Path) -> None:
    assert {file.name for file in adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert '"base_model_name_or_path": ""' in (adapter / "adapter_config.json").read_text()


def test_one_model_answers_as_each_policy_and_forgets_none(tiny_model: Path, adapter: Path) -> None:
    base = scores(load_base(tiny_model, "float32"))
    alone = scores(load_adapter(load_base(tiny_model, "float32"), adapter, "other"))
    assert np.abs(alone - base).mean() > 0.1
    model = load_adapter(load_base(tiny_model, "float32"), adapter, TRAINED)
    model = load_adapter(model, adapter, "serving")
    for policy, expected in (("base", base), ("serving", alone), ("base", base), (TRAINED, alone), ("base", base)):
        with answering_as(model, policy) as answering:
            np.testing.assert_allclose(scores(answering), expected, atol=1e-4)


def test_the_plain_export_is_a_peft_folder(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    export_policy(tiny_model, adapter, tmp_path / "plain", merged=False)
    exported = load_adapter(load_base(tiny_model, "float32"), tmp_path / "plain", "exported")
    original = load_adapter(load_base(tiny_model, "float32"), adapter, "original")
    np.testing.assert_array_equal(scores(exported), scores(original))


def test_the_merged_export_answers_like_the_policy(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    export_policy(tiny_model, adapter, tmp_path / "merged", merged=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    policy = load_adapter(load_base(tiny_model, "float32"), adapter, "policy")
    np.testing.assert_allclose(scores(merged), scores(policy), atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_the_base_exports_as_itself(tiny_model: Path, tmp_path: Path) -> None:
    export_policy(tiny_model, None, tmp_path / "base", merged=True)
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json is missing"):
        load_base(tmp_path, "float32")
