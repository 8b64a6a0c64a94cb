"""Events as they come, over the wire."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from attune.access import Role
from attune.aggregator.log_service import MOST_TAILS
from attune.v1 import dataset_pb2, dataset_pb2_grpc, event_pb2
from tests.aggregator.office import Office, open_office
from tests.aggregator.plant import Plant
from tests.eventlog.waiting import eventually
from tests.keyed import metadata
from tests.lake.events import response_event, thumb_event

OTHER = event_pb2.EventHeader(tenant="other")


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    opened = Plant(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def office(plant: Plant) -> Iterator[Office]:
    with open_office(plant.folder) as opened:
        yield opened


class Tail:
    """Looking on from the moment it is made."""

    def __init__(self, office: Office, *, tenant: str = "default", **wanted: Any) -> None:
        key = office.access.create(tenant, (Role.OPERATE,))
        channel = grpc.insecure_channel(f"127.0.0.1:{office.port}")
        stub: Any = dataset_pb2_grpc.LogServiceStub(channel)  # type: ignore[no-untyped-call]
        self._parts = stub.TailLog(dataset_pb2.TailLogRequest(**wanted), timeout=30, metadata=metadata(key))
        assert next(self._parts).HasField("start")

    def next(self) -> dataset_pb2.LoggedEvent:
        part = next(self._parts)
        assert part.HasField("event")
        event: dataset_pb2.LoggedEvent = part.event
        return event

    def close(self) -> None:
        self._parts.cancel()


def test_events_are_told_as_they_come_without_any_text(plant: Plant, office: Office) -> None:
    tail = Tail(office)
    plant.append(response_event(1))
    said = tail.next()
    assert (said.topic, said.partition, said.offset, said.response_id) == ("attune.responses", 0, 0, "r-1")
    assert (said.response.policy_id, said.response.finish_reason) == ("base", "stop")
    assert (said.response.prompt_tokens, said.response.output_tokens) == (3, 2)
    plant.append(thumb_event(1, 1, comment="Bad cab."))
    vote = tail.next()
    assert (vote.feedback.kind, vote.feedback.value, vote.response_id) == ("thumb", "down", "r-1")
    for text in ("Call a cab", "Done.", "Bad cab", "Be brief"):
        assert text not in str(said) + str(vote)


def test_texts_are_told_when_asked_for_with_personal_data_masked_and_what_was_denied_left_out(
    plant: Plant, office: Office
) -> None:
    tail = Tail(office, text=True)
    plant.append(
        response_event(1, text="Write to ann@example.org."),
        response_event(2, consent=event_pb2.Consent(store=False)),
        thumb_event(1, 1, comment="Ask bob@example.org!"),
    )
    told = [tail.next() for _ in range(3)]
    assert told[0].response.prompt == "Call a cab, please. 1"
    assert told[0].response.text == "Write to [mail]."
    assert (told[1].response.prompt, told[1].response.text) == ("", "")
    assert told[2].feedback.comment == "Ask [mail]!"


def test_each_sees_its_own_and_what_it_asked_for(plant: Plant, office: Office) -> None:
    theirs = Tail(office, tenant="other")
    votes = Tail(office, feedback=True)
    tutor = Tail(office, persona="tutor")
    plant.append(
        response_event(1),
        response_event(2, header=OTHER),
        response_event(3, persona="tutor"),
        thumb_event(1, 1),
    )
    assert theirs.next().response_id == "r-2"
    assert votes.next().feedback.kind == "thumb"
    assert tutor.next().response_id == "r-3"


def test_a_record_that_nothing_can_be_made_of_is_told_to_the_installation_s_operator(
    plant: Plant, office: Office
) -> None:
    ours, theirs = Tail(office, responses=True), Tail(office, tenant="other")
    plant.append(b"\xff\xff", topic="attune.responses")
    plant.append(response_event(1, header=OTHER))
    assert "not" in ours.next().unreadable
    assert theirs.next().response_id == "r-1"


def test_a_few_may_look_on_at_once_and_who_goes_makes_room(plant: Plant, office: Office) -> None:
    tails = [Tail(office) for _ in range(MOST_TAILS)]
    with pytest.raises(grpc.RpcError) as refused:
        Tail(office)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    tails[0].close()

    def another() -> Tail | None:
        try:
            return Tail(office)
        except grpc.RpcError:
            return None

    opened: list[Tail | None] = []
    eventually(lambda: opened.append(another()) or opened[-1])
    plant.append(response_event(1))
    assert opened[-1] is not None
    assert opened[-1].next().response_id == "r-1"
