from pathlib import Path

import pytest

from attune.trainer.tracking import stay_at_home

stay_at_home()

from tests.trainer.tiny import write_tiny_model  # noqa: E402


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))
