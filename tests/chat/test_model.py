import shutil
from pathlib import Path

import pytest

from attune.chat.model import model_hash
from attune.errors import NotFound


def test_the_hash_is_of_weights_and_configuration_alone(tmp_path: Path, demo_model: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(demo_model, copy)
    before = model_hash(copy)
    assert before == model_hash(demo_model)
    (copy / "tokenizer.json").write_text("{}")
    assert model_hash(copy) == before
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert model_hash(copy) != before


def test_a_folder_without_weights_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotFound, match="holds no model"):
        model_hash(tmp_path)
