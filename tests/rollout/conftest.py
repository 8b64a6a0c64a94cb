from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.rollout.house import House


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House.at(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"weight": np.zeros(4, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder
