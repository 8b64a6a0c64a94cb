from pathlib import Path

import pytest

from attune.errors import Unavailable
from attune.trainer.tracking import open_tracking


def test_a_damaged_store_of_runs_is_one_sentence_without_its_address(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(Unavailable, match=r"MLflow's store cannot be used .* may be moved away") as refused:
        open_tracking(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert str(tmp_path) not in refused.value.message
