"""What of a run goes beside what: `pytest -n 2` takes two lanes, each with its tests in order.

All that keeps an engine busy is one lane, so that there is one engine for the whole run, and what measures seconds has
a core; all that shares the broker and the S3 server is another. The rest goes file by file to whoever is free.
"""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

_LANES = {
    "engine": (
        "tests/inference/",
        "tests/ring/",
        "tests/rehearsal/test_ring.py",
        "tests/cli/test_up.py",
    ),
    "servers": (
        "tests/shipper/",
        "tests/eventlog/test_broker.py",
        "tests/eventlog/test_contract.py",
        "tests/eventlog/test_follower.py",
        "tests/aggregator/test_dead_letters.py",
        "tests/aggregator/test_erase.py",
        "tests/aggregator/test_object_store.py",
        "tests/cli/test_dead_letter.py",
        "tests/rehearsal/soak/",
    ),
}


def lane_of(nodeid: str) -> str:
    file, _, _ = nodeid.partition("::")
    return next((lane for lane, files in _LANES.items() if file.startswith(files)), file)


def engine_first(items: list[pytest.Item]) -> None:
    """Half of the time is the engine's: it is not to begin last."""
    items.sort(key=lambda item: lane_of(item.nodeid) != "engine")


class Lanes(LoadScopeScheduling):
    """In the order of the collection: a few tests of a file may take longer than many of another."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return lane_of(nodeid)
