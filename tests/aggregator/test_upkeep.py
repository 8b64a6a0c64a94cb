"""The lake is kept in shape while the aggregator runs."""

import threading

from prometheus_client import REGISTRY

from attune.aggregator.upkeep import keep_in_shape
from attune.lake.delta import load_table
from attune.settings import LakeSettings
from tests.aggregator.plant import Plant, ids_of
from tests.eventlog.waiting import eventually
from tests.lake.events import response_event

OFTEN = LakeSettings.model_construct(**LakeSettings().model_dump() | {"optimize_minutes": 0.0005})


def rounds(outcome: str) -> float:
    return REGISTRY.get_sample_value("attune_lake_optimized_total", {"outcome": outcome}) or 0


def test_files_are_merged_beside_ingest_and_a_failure_passes(plant: Plant) -> None:
    stopping = threading.Event()
    folder = plant.folder / "lake" / "responses"
    keeper = threading.Thread(target=keep_in_shape, args=(plant.lake.place, OFTEN, stopping))
    keeper.start()
    try:
        for n in range(20):
            plant.append(response_event(n))
            plant.ingest_all()
        eventually(lambda: len(load_table(folder).file_uris()) == 1, 20)
        failed = rounds("failed")
        log = folder / "_delta_log"
        hidden = log.with_name("hidden")
        log.rename(hidden)
        log.write_text("no folder")
        eventually(lambda: rounds("failed") > failed, 20)
        log.unlink()
        hidden.rename(log)
        done = rounds("done")
        eventually(lambda: rounds("done") > done, 20)
    finally:
        stopping.set()
        keeper.join(20)
    assert not keeper.is_alive()
    assert plant.ids("responses") == ids_of([response_event(n) for n in range(20)])
