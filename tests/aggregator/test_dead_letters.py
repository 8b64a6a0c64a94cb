"""What could not be read is kept, with its reason and its bytes, and comes into the lake once when it can be."""

import os
from pathlib import Path

import pytest

from attune.aggregator.dead_letters import DeadLetter, DeadLetterTable, DeadLetterTopic, Outcome, is_replayed, replay
from attune.aggregator.ingest import Ingest
from attune.aggregator.privacy.guard import Guard
from attune.erasures import Erasures
from attune.errors import AlreadyExists, FailedPrecondition, InvalidInput
from attune.eventlog import FEEDBACK, RESPONSES
from attune.eventlog.broker import LocalBroker
from attune.lake.tables import DEAD_LETTER, Position, dead_letter_row, to_arrow
from tests.aggregator.plant import Plant
from tests.brokers import cluster_on
from tests.lake.events import NOW_UNIX_MS, response_event, thumb_event


def set_aside(plant: Plant, topic: str, offset: int, payload: bytes, kept: int | None = None) -> DeadLetter:
    """As an older version did, which did not know what it was."""
    row = dead_letter_row(topic, b"key", payload, "unknown", Position("log", 0, offset))
    row["payload"] = row["payload"][:kept]
    source = f"log/{topic}/0"
    table = plant.lake.dead_letter
    table.append(to_arrow(DEAD_LETTER, [row]), source, table.next_offset(source), offset + 1)
    return next(each for each in DeadLetterTable(table).read() if (each.topic, each.offset) == (topic, offset))


def test_a_letter_says_what_it_was_and_why_it_is_here(plant: Plant) -> None:
    garbage = os.urandom(100)
    plant.append(response_event(1), garbage, topic=RESPONSES)
    plant.ingest_all()
    (letter,) = DeadLetterTable(plant.another().lake.dead_letter).read()
    assert (letter.topic, letter.partition, letter.offset) == (RESPONSES, 0, 1)
    assert (letter.key, letter.payload, letter.payload_bytes) == (b"key", garbage, 100)
    assert letter.log_id == plant.log.log_id(RESPONSES)
    assert len(letter.id) == 12


def test_an_event_that_is_known_by_now_comes_into_the_lake_once(plant: Plant) -> None:
    letters = [
        set_aside(plant, RESPONSES, 3, response_event(3).SerializeToString()),
        set_aside(plant, FEEDBACK, 4, thumb_event(4, 3).SerializeToString()),
    ]
    for letter in letters:
        assert not is_replayed(letter, plant.lake)
        assert replay(letter, plant.lake, None) == Outcome.BROUGHT
        assert is_replayed(letter, plant.lake)
        with pytest.raises(AlreadyExists):
            replay(letter, plant.another().lake, None)
    assert (plant.ids("responses"), plant.ids("feedback")) == (["response-3"], ["feedback-4"])
    plant.append(response_event(3))
    plant.ingest_all()
    assert plant.ids("responses") == ["response-3"]


def test_a_replay_beside_an_aggregator_and_another_replay_brings_it_once(plant: Plant) -> None:
    letter = set_aside(plant, RESPONSES, 3, response_event(3).SerializeToString())
    first, second = plant.another(), plant.another()
    plant.append(response_event(1))
    plant.ingest_all()
    assert replay(letter, first.lake, None) == Outcome.BROUGHT
    with pytest.raises(AlreadyExists):
        replay(letter, second.lake, None)
    assert plant.ids("responses") == ["response-1", "response-3"]


def test_an_event_that_the_lake_has_is_not_brought_again(plant: Plant) -> None:
    plant.append(response_event(3))
    plant.ingest_all()
    letter = set_aside(plant, RESPONSES, 3, response_event(3).SerializeToString())
    assert replay(letter, plant.lake, None) == Outcome.KNOWN
    assert plant.ids("responses") == ["response-3"]


def test_nothing_of_somebody_who_was_erased_comes_back(plant: Plant) -> None:
    erasures = Erasures(plant.folder / "erasures")
    erasures.ask("default", "user-3", NOW_UNIX_MS + 100)
    guard = Guard(None, erasures)
    theirs = set_aside(plant, RESPONSES, 3, response_event(3).SerializeToString())
    assert replay(theirs, plant.lake, guard) == Outcome.DROPPED
    assert is_replayed(theirs, plant.lake)
    other = set_aside(plant, RESPONSES, 4, response_event(4).SerializeToString())
    assert replay(other, plant.lake, guard) == Outcome.BROUGHT
    assert plant.ids("responses") == ["response-4"]


def test_what_is_still_no_event_stays_where_it_is(plant: Plant) -> None:
    letter = set_aside(plant, RESPONSES, 3, b"\xff")
    with pytest.raises(InvalidInput, match="still no event: not a ResponseEvent"):
        replay(letter, plant.lake, None)
    assert not is_replayed(letter, plant.lake)
    cut = set_aside(plant, RESPONSES, 4, response_event(3).SerializeToString(), kept=50)
    with pytest.raises(FailedPrecondition, match="only 50 of "):
        replay(cut, plant.lake, None)
    assert plant.ids("responses") == []


def test_with_kafka_they_go_to_its_topic_and_are_read_from_it_once(broker: LocalBroker, plant: Plant) -> None:
    cluster = cluster_on(broker, request_seconds=5, delivery_seconds=5)
    shelf = DeadLetterTopic(cluster)
    plant.append(b"\xff", response_event(1), os.urandom(1 << 20), topic=RESPONSES)

    def crash(step: str) -> None:
        if step == "dead letters written":
            raise RuntimeError

    crashing = Ingest(plant.log, plant.lake, RESPONSES, batch_records=10, dead_letters=shelf, reached=crash)
    with pytest.raises(RuntimeError):
        crashing.poll()
    ingest = Ingest(plant.log, plant.another().lake, RESPONSES, batch_records=10, dead_letters=shelf)
    while ingest.poll():
        pass
    letters = list(shelf.read())
    assert [(letter.offset, letter.key, letter.payload_bytes) for letter in letters] == [
        (0, b"key", 1),
        (2, b"key", 1 << 20),
    ]
    assert letters[0].payload == b"\xff"
    assert letters[0].reason == "not a ResponseEvent"
    assert plant.ids("responses") == ["response-1"]
    assert list(DeadLetterTable(plant.another().lake.dead_letter).read()) == []


def test_a_topic_that_is_empty_has_none(broker: LocalBroker, tmp_path: Path) -> None:
    assert list(DeadLetterTopic(cluster_on(broker)).read()) == []
