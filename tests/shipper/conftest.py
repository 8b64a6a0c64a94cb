from collections.abc import Iterator
from pathlib import Path

import pytest

from attune.eventlog.broker import LocalBroker
from tests.brokers import cluster_on
from tests.shipper.ferry import Ferry


@pytest.fixture
def ferry(broker: LocalBroker, tmp_path: Path) -> Iterator[Ferry]:
    opened = Ferry(tmp_path, cluster_on(broker, partitions=3))
    yield opened
    opened.close()
