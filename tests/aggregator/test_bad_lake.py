"""Events that contradict each other or come from impossible times, and a lake whose files vanish or change."""

from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from attune.aggregator.ingest import Ingest
from attune.errors import DataLoss
from attune.eventlog import RESPONSES
from attune.lake.damage import leave_out_damage
from attune.lake.lake import Lake
from tests.aggregator.plant import Plant, ids_of
from tests.lake.events import response_event, thumb_event


def counted(name: str, table: str = "responses") -> float:
    return REGISTRY.get_sample_value(f"attune_lake_{name}_total", {"table": table}) or 0


def text_of(plant: Plant, response_id: str) -> list[str]:
    rows = plant.another().lake.responses.read(["response_id", "text"]).to_pylist()
    return [row["text"] for row in rows if row["response_id"] == response_id]


@pytest.mark.parametrize("batch_records", [1, 10], ids=["in two batches", "in one"])
def test_of_two_events_with_one_id_the_first_stands_and_a_contradiction_is_counted(
    plant: Plant, batch_records: int
) -> None:
    before, repeated = counted("contradictions"), counted("repeated")
    plant.append(response_event(1), response_event(1, text="Another."), response_event(2))
    plant.ingest_all(batch_records)
    assert text_of(plant, "r-1") == ["Done. 1"]
    assert counted("contradictions") == before + 1
    plant.append(response_event(2, text="Another."))
    plant.another().ingest_all()  # by one that has only the table to remember from
    assert text_of(plant, "r-2") == ["Done. 2"]
    assert counted("contradictions") == before + 2
    assert counted("repeated") == repeated + 2


def test_an_event_that_was_sent_again_later_is_no_contradiction(plant: Plant) -> None:
    before, repeated = counted("contradictions"), counted("repeated")
    again = response_event(1)
    again.header.created_unix_ms += 60_000  # an import without a time of its own has the time of its sending
    again.timings.received_unix_ms += 60_000
    plant.append(response_event(1), thumb_event(1, 1), again)
    plant.ingest_all()
    plant.append(again, thumb_event(1, 1))
    plant.another().ingest_all()
    assert counted("repeated") == repeated + 2
    assert counted("contradictions") == before
    assert counted("contradictions", "feedback") == 0


def test_impossible_times_are_kept_and_counted(plant: Plant) -> None:
    before = counted("strange_times")
    early, late, now = response_event(1), response_event(2), response_event(3)
    early.header.created_unix_ms = 1
    late.header.created_unix_ms = 4_102_444_800_000  # 2100
    plant.append(early, late, now, thumb_event(1, 1), thumb_event(2, 2), thumb_event(3, 3))
    plant.ingest_all()
    assert plant.ids("responses") == ids_of([early, late, now])
    assert counted("strange_times") == before + 2
    assert len({name.split("/")[0] for name in plant.another().lake.responses.files()}) == 1


def damage(plant: Plant, how: str) -> Path:
    """To the file of the first batch of responses; gives its name."""
    folder = plant.folder / "lake" / "responses"
    victim = min(folder.glob("day=*/*.parquet"), key=lambda file: file.stat().st_mtime_ns)
    if how == "missing":
        victim.unlink()
    else:
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    return victim


@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_of_a_damaged_lake_no_dataset_is_built_and_ingest_goes_on(plant: Plant, how: str) -> None:
    for n in range(6):
        plant.append(response_event(n), thumb_event(n, n))
        plant.ingest_all()
    victim = damage(plant, how)
    with pytest.raises(DataLoss, match=victim.name):
        plant.build()
    assert not list((plant.folder / "datasets").glob("d-*"))
    assert REGISTRY.get_sample_value("attune_lake_damaged_files", {"table": "responses"}) == 1

    fresh = plant.another()
    fresh.append(response_event(6), response_event(6), thumb_event(6, 6))
    fresh.ingest_all()
    assert fresh.lake.responses.next_offset(f"{plant.log.log_id(RESPONSES)}/{RESPONSES}/0") == 8
    assert plant.log.positions("aggregator")[RESPONSES, 0] == 8

    assert leave_out_damage(fresh.lake.responses)[0].rows == 1
    dataset = plant.build()
    assert dataset.table().num_rows == 6
    assert dataset.manifest.counts["left_out"] == {"unknown_response": 1}


def test_merging_leaves_a_damaged_file_as_it_is(plant: Plant) -> None:
    for n in range(6):
        plant.append(response_event(n))
        plant.ingest_all()
    victim = damage(plant, "flipped")
    flipped = victim.read_bytes()
    lake = plant.another().lake
    assert [step.files for step in lake.responses.merge(1 << 30)] == [5]
    assert victim.read_bytes() == flipped
    assert len(lake.responses.files()) == 2


def test_a_missing_entry_of_a_tables_log_stops_ingest_until_it_is_put_back(plant: Plant) -> None:
    for n in range(8):
        plant.append(response_event(n))
        plant.ingest_all()
    entry = plant.folder / "lake" / "responses" / "_delta_log" / f"{3:020d}.json"
    hidden = entry.with_name("hidden")
    entry.rename(hidden)
    plant.append(response_event(8))
    with pytest.raises(DataLoss):
        Lake(plant.folder / "lake")
    assert plant.log.positions("aggregator")[RESPONSES, 0] == 8
    hidden.rename(entry)
    Ingest(plant.log, Lake(plant.folder / "lake"), RESPONSES, batch_records=10).poll()
    assert plant.ids("responses") == ids_of([response_event(n) for n in range(9)])
