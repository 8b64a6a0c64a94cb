from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aggregator.plant import Plant


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    opened = Plant(tmp_path)
    yield opened
    opened.close()
