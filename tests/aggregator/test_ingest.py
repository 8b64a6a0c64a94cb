"""Event log to lake: each event once, whatever happens."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from attune.aggregator.ingest import Ingest, SeenIds
from attune.errors import AttuneError
from attune.eventlog import FEEDBACK, RESPONSES, Record, SqliteLogReader
from attune.lake.audit import audit, count_ids
from attune.lake.lake import Lake
from attune.lake.tables import to_arrow
from attune.v1.event_pb2 import EventHeader
from tests.aggregator.plant import Plant, ids_of
from tests.disks import small_disk
from tests.eventlog.waiting import eventually
from tests.lake.events import response_event, thumb_event


def test_events_reach_their_tables_in_batches(plant: Plant) -> None:
    responses = [response_event(n) for n in range(25)]
    thumbs = [thumb_event(n, n) for n in range(7)]
    plant.append(*responses, *thumbs)
    ingest = plant.ingest(RESPONSES, batch_records=10)
    assert [ingest.poll() for _ in range(4)] == [10, 10, 5, 0]
    plant.ingest_all()
    assert plant.ids("responses") == ids_of(responses)
    assert plant.ids("feedback") == ids_of(thumbs)


def test_the_log_is_trimmed_only_behind_what_the_lake_holds(plant: Plant) -> None:
    plant.append(*[response_event(n) for n in range(5)])
    assert plant.log.positions("aggregator") == {}
    plant.ingest_all()
    assert plant.log.positions("aggregator")[RESPONSES, 0] == 5
    eventually(lambda: plant.log.range(RESPONSES, 0).first == 5)
    plant.append(response_event(5))
    plant.ingest_all()
    assert len(plant.ids("responses")) == 6


def test_an_event_that_was_sent_again_is_dropped(plant: Plant) -> None:
    plant.append(response_event(1), response_event(2), response_event(1))
    plant.ingest_all()
    plant.append(response_event(2), response_event(3))
    plant.ingest_all()  # by an ingest that has only the table to remember from
    ingest = plant.ingest(RESPONSES)
    plant.append(response_event(3))
    ingest.poll()
    plant.append(response_event(3), response_event(4))
    ingest.poll()
    assert plant.ids("responses") == ids_of([response_event(n) for n in (1, 2, 3, 4)])


def test_remembered_ids_are_bounded() -> None:
    seen = SeenIds(["a", "b", "a"], limit=2)
    seen.add(["c"])
    assert ["a" in seen, "b" in seen, "c" in seen] == [False, True, True]


def test_poison_goes_to_the_dead_letters_and_the_loop_goes_on(plant: Plant) -> None:
    later = response_event(8)
    later.header.schema_version = 2
    no_id = response_event(9)
    no_id.header.event_id = ""
    garbage = os.urandom(500)
    plant.append(response_event(1), garbage, later, no_id, b"", response_event(2))
    plant.append(os.urandom(50), thumb_event(1, 1), topic=FEEDBACK)
    plant.ingest_all()
    assert plant.ids("responses") == ["response-1", "response-2"]
    assert plant.ids("feedback") == ["feedback-1"]
    dead = plant.another().lake.dead_letter.read(["topic", "log_offset", "reason", "payload"]).to_pylist()
    found = {(row["topic"], row["log_offset"]): (row["reason"], row["payload"]) for row in dead}
    assert len(dead) == 5
    assert found[RESPONSES, 1][1] == garbage
    assert found[RESPONSES, 2][0] == "schema_version is 2; this version knows 1"
    assert found[RESPONSES, 3][0] == "header.event_id is missing"
    assert (FEEDBACK, 0) in found


def test_a_batch_of_nothing_but_poison_moves_on(plant: Plant) -> None:
    plant.append(b"\xff", b"\xff", topic=RESPONSES)
    ingest = plant.ingest(RESPONSES)
    assert ingest.poll() == 2
    assert ingest.poll() == 0
    plant.append(response_event(1))
    assert ingest.poll() == 1
    assert plant.ids("responses") == ["response-1"]


STEPS = ["converted", "dead letters written", "committed", "synced", "positioned", "tidied"]

_KILLED_AT = """
import os, signal, sys
from pathlib import Path
from attune.aggregator.ingest import Ingest
from attune.eventlog import RESPONSES, SqliteLogReader
from attune.lake.lake import Lake
folder, step = Path(sys.argv[1]), sys.argv[2]
def reached(name):
    if name == step:
        os.kill(os.getpid(), signal.SIGKILL)
ingest = Ingest(SqliteLogReader(folder / "spool"), Lake(folder / "lake"), RESPONSES, batch_records=4, reached=reached)
while ingest.poll():
    pass
"""


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_no_row_is_lost_or_twice(plant: Plant, step: str) -> None:
    events = [response_event(n) for n in range(10)]
    plant.append(*events[:2], b"\xff", *events[2:5], b"\xfe", *events[5:], topic=RESPONSES)
    killed = subprocess.run([sys.executable, "-c", _KILLED_AT, str(plant.folder), step], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    plant.another().ingest_all(batch_records=3)
    assert plant.ids("responses") == ids_of(events)
    dead = plant.another().lake.dead_letter.read(["log_offset"])["log_offset"].to_pylist()
    assert sorted(dead) == [2, 6]
    assert plant.log.positions("aggregator")[RESPONSES, 0] == 12
    found = audit(plant.folder / "lake", [event.response_id for event in events], [])
    assert found.passed


@pytest.mark.parametrize("step", STEPS)
def test_one_that_was_frozen_at_any_step_cannot_commit_what_another_has(plant: Plant, step: str) -> None:
    """The frozen one's handles are from before; the other takes everything meanwhile; then it goes on."""
    events = [response_event(n) for n in range(8)]
    plant.append(*events[:3], b"\xff", *events[3:], topic=RESPONSES)
    other = plant.another()

    def take_over(name: str) -> None:
        if name == step:
            other.append(response_event(100))
            other.ingest_all(batch_records=3)

    ingest = plant.ingest(RESPONSES, batch_records=5, reached=take_over)
    for _ in range(8):
        ingest.poll()
    assert plant.ids("responses") == ids_of([*events, response_event(100)])
    assert plant.another().lake.dead_letter.read(["log_offset"]).num_rows == 1


def test_two_aggregators_at_once_bring_each_event_once(plant: Plant) -> None:
    script = """
import sys
from pathlib import Path
from attune.aggregator.ingest import Ingest
from attune.eventlog import RESPONSES, SqliteLogReader
from attune.lake.lake import Lake
folder = Path(sys.argv[1])
ingest = Ingest(SqliteLogReader(folder / "spool"), Lake(folder / "lake"), RESPONSES, batch_records=5)
sys.stdin.readline()
while ingest.poll():
    pass
"""
    events = [response_event(n) for n in range(200)]
    plant.append(*events[:100], b"\xff", *events[100:], topic=RESPONSES)
    aggregators = [
        subprocess.Popen([sys.executable, "-c", script, str(plant.folder)], stdin=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for aggregator in aggregators:
        assert aggregator.stdin is not None
        aggregator.stdin.write("go\n")
        aggregator.stdin.flush()
    assert [aggregator.wait(60) for aggregator in aggregators] == [0, 0]
    assert plant.ids("responses") == ids_of(events)
    assert plant.another().lake.dead_letter.read(["log_offset"]).num_rows == 1


def test_what_another_aggregator_brought_in_is_known_when_it_comes_again(plant: Plant) -> None:
    ingest = plant.ingest(RESPONSES)
    assert ingest.poll() == 0
    plant.append(response_event(1))
    plant.another().ingest_all()
    # A commit of its own to another source: from then on its handle stands behind what the other has committed.
    plant.lake.responses.append(to_arrow("responses", []), "elsewhere/0", 0, 1)
    plant.append(response_event(1), response_event(2))
    while ingest.poll():
        pass
    assert plant.ids("responses") == ids_of([response_event(1), response_event(2)])


def alarms() -> float:
    return REGISTRY.get_sample_value("attune_lake_offset_alarms_total", {"topic": RESPONSES}) or 0


def test_a_lake_ahead_of_the_log_is_an_alarm_and_never_a_reset(plant: Plant) -> None:
    plant.append(*[response_event(n) for n in range(3)], *[thumb_event(n, n) for n in range(3)])
    source = f"{plant.log.log_id(RESPONSES)}/{RESPONSES}/0"
    plant.lake.responses.append(to_arrow("responses", []), source, 0, 50)
    before = alarms()
    ingest = plant.ingest(RESPONSES)
    assert [ingest.poll(), ingest.poll()] == [0, 0]
    assert alarms() == before + 1
    assert plant.ids("responses") == []
    assert plant.lake.responses.next_offset(source) == 50
    assert plant.ingest(FEEDBACK).poll() == 3


def test_a_lake_behind_what_the_log_has_trimmed_is_an_alarm(plant: Plant, tmp_path: Path) -> None:
    plant.append(*[response_event(n) for n in range(3)])
    plant.ingest_all()
    eventually(lambda: plant.log.range(RESPONSES, 0).first == 3)
    (plant.folder / "lake").rename(tmp_path / "gone")
    plant.append(response_event(4))
    before = alarms()
    fresh = plant.another()
    assert fresh.ingest(RESPONSES).poll() == 0
    assert alarms() == before + 1
    assert fresh.ids("responses") == []


class MadeAnewMeanwhile(SqliteLogReader):
    """Another log takes the place of this one between a look at what it holds and the reading of it."""

    def __init__(self, folder: Path, make_anew: Callable[[], None]) -> None:
        super().__init__(folder)
        self._make_anew = make_anew

    def read(self, topic: str, partition: int, offset: int, limit_records: int, limit_bytes: int) -> list[Record]:
        self._make_anew()
        self.ranges(topic)
        return super().read(topic, partition, offset, limit_records, limit_bytes)


def test_a_log_that_is_made_anew_between_two_looks_is_not_taken_for_the_old_one(plant: Plant, tmp_path: Path) -> None:
    plant.append(*[response_event(n) for n in range(3)])
    plant.ingest_all()
    old = f"{plant.log.log_id(RESPONSES)}/{RESPONSES}/0"
    plant.append(response_event(3))
    other = tmp_path / "other"
    fresh = Plant(other)
    fresh.append(*[response_event(n) for n in range(100, 106)])
    fresh.close()

    def make_anew() -> None:
        if other.exists():
            (plant.folder / "spool").rename(tmp_path / "gone")
            (other / "spool").rename(plant.folder / "spool")
            (other / "lake").rename(tmp_path / "empty")
            other.rmdir()

    reader = MadeAnewMeanwhile(plant.folder / "spool", make_anew)
    ingest = Ingest(reader, plant.another().lake, RESPONSES, batch_records=10)
    for _ in range(3):
        ingest.poll()
    reader.close()
    assert plant.ids("responses") == ids_of(response_event(n) for n in (0, 1, 2, *range(100, 106)))
    assert plant.another().lake.responses.next_offset(old) == 3


def test_a_new_log_begins_at_its_own_beginning(plant: Plant, tmp_path: Path) -> None:
    plant.append(response_event(1))
    plant.ingest_all()
    plant.close()
    (plant.folder / "spool").rename(tmp_path / "old-spool")
    fresh = Plant(plant.folder)
    try:
        fresh.append(response_event(2), response_event(1))
        fresh.ingest_all()
        assert fresh.ids("responses") == ["response-1", "response-2"]
    finally:
        fresh.close()


def test_a_lake_that_cannot_be_written_loses_nothing(plant: Plant) -> None:
    plant.append(*[response_event(n) for n in range(3)])
    ingest = plant.ingest(RESPONSES)
    log = plant.folder / "lake" / "responses" / "_delta_log"
    hidden = log.with_name("hidden")

    def break_it(name: str) -> None:
        if name == "dead letters written" and log.is_dir():
            log.rename(hidden)
            log.write_text("no folder")

    broken = Ingest(plant.log, plant.lake, RESPONSES, batch_records=10, reached=break_it)
    with pytest.raises(AttuneError):
        broken.poll()
    log.unlink()
    hidden.rename(log)
    assert plant.log.positions("aggregator") == {}
    assert plant.another().ingest(RESPONSES).poll() == 3
    assert ingest.poll() in (0, 1)  # drops its batch and loads anew
    ingest.poll()
    assert plant.ids("responses") == ids_of([response_event(n) for n in range(3)])


def test_a_full_disk_under_the_lake_loses_nothing_and_passes(plant: Plant, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        events = [response_event(n, text=os.urandom(30_000).hex()) for n in range(40)]
        plant.append(*events)
        lake = Lake(disk / "lake")
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * (2 << 20))
        ingest = Ingest(plant.log, lake, RESPONSES, batch_records=4)
        failures = 0
        for _ in range(20):
            try:
                ingest.poll()
            except AttuneError:
                failures += 1
        assert failures
        assert plant.log.positions("aggregator")[RESPONSES, 0] < 40
        ballast.unlink()
        while ingest.poll():
            pass
        assert sorted(count_ids(disk / "lake", "responses", "event_id").elements()) == ids_of(events)


def test_no_flipped_byte_stops_the_loop(plant: Plant) -> None:
    chance = random.Random(7)
    flipped = []
    for n in range(600):
        payload = bytearray(response_event(n, header=EventHeader(event_id=f"flipped-{n}")).SerializeToString())
        for _ in range(chance.randint(1, 3)):
            payload[chance.randrange(len(payload))] = chance.randrange(256)
        flipped.append(bytes(payload))
    plant.append(*flipped, response_event(1), topic=RESPONSES)
    plant.ingest_all(batch_records=100)
    assert "response-1" in plant.ids("responses")
    dead = plant.another().lake.dead_letter.read(["log_offset"]).num_rows
    assert 0 < dead < 600
    assert len(plant.ids("responses")) + dead >= 590  # a flipped event id may be another's
    assert plant.build().table().num_rows == 0
