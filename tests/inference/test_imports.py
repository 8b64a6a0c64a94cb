"""Answers from elsewhere: logged as such, once, whatever is sent again."""

from collections.abc import Callable

import grpc
import pytest

from attune.access import Role
from attune.v1 import event_pb2, feedback_pb2, feedback_pb2_grpc
from tests.inference.house import House, user
from tests.keyed import metadata

Import = feedback_pb2.ImportResponseRequest


def said(*texts: str) -> list[event_pb2.Message]:
    return [event_pb2.Message(role=event_pb2.ROLE_ASSISTANT, content=text) for text in texts]


def record(import_id: str = "hh-1", **fields: object) -> Import:
    whole = {"messages": user("How are you?"), "answers": said("Well.", "Badly."), **fields}
    return Import(import_id=import_id, **whole)  # type: ignore[arg-type]


async def imported(house: House, *requests: Import) -> list[feedback_pb2.ImportResponseResult]:
    stub = feedback_pb2_grpc.ImportServiceStub(house.channel)
    return [result async for result in stub.ImportResponses(iter(requests))]


async def test_imported_answers_are_logged_as_not_ours_and_can_be_ranked(house: House) -> None:
    (result,) = await imported(house, record(metadata={"set": "hh"}, end_user_id="u-1"))
    events = house.responses()
    assert [event.text for event in events] == ["Well.", "Badly."]
    assert {event.source for event in events} == {event_pb2.SOURCE_IMPORTED}
    assert not any(event.output_token_ids or event.policy_id for event in events)
    assert list(result.accepted.response_ids) == [event.response_id for event in events]
    entries = [
        feedback_pb2.RankingRequest.Entry(response_id=response_id, rank=rank)
        for rank, response_id in enumerate(result.accepted.response_ids, start=1)
    ]
    await house.feedback.SubmitFeedback(
        feedback_pb2.SubmitFeedbackRequest(
            ranking=feedback_pb2.RankingRequest(entries=entries), end_user_id="u-1", client_feedback_id="rank-hh-1"
        )
    )
    (event,) = house.thumbs()
    assert [entry.rank for entry in event.ranking.entries] == [1, 2]


async def test_the_same_record_again_adds_nothing_and_another_under_its_id_is_refused(house: House) -> None:
    first, again = await imported(house, record(), record("hh-2"))
    (other,) = await imported(house, record())
    assert not first.accepted.duplicate
    assert not again.accepted.duplicate
    assert other.accepted.duplicate
    assert list(other.accepted.response_ids) == list(first.accepted.response_ids)
    (changed,) = await imported(house, record(answers=said("Quite well.")))
    assert changed.refused.code == grpc.StatusCode.ALREADY_EXISTS.value[0]
    assert len(house.responses()) == 4


BAD: dict[str, tuple[Callable[[], Import], str]] = {
    "no id": (lambda: record(""), "import_id has 0 characters"),
    "long id": (lambda: record("i" * 129), "import_id has 129 characters"),
    "no messages": (lambda: record(messages=[]), "there are no messages"),
    "no answers": (lambda: record(answers=[]), "there are 0 answers"),
    "many answers": (lambda: record(answers=said(*"abcdefghijklmnopq")), "there are 17 answers"),
    "an answer of the user's": (lambda: record(answers=user("a")), "answers[0] is not from the assistant"),
    "an empty answer": (lambda: record(answers=said("")), "answers[0] is empty"),
    "served": (lambda: record(source=event_pb2.SOURCE_SERVED), "source must be"),
    "tomorrow": (lambda: record(created_unix_ms=2**60), "it must be 0 or a time that has been"),
    "before time": (lambda: record(created_unix_ms=-1), "it must be 0 or a time that has been"),
    "not to be stored": (lambda: record(consent=event_pb2.Consent(store=False)), "cannot be imported"),
    "unknown persona": (lambda: record(persona="nobody"), "no such persona"),
}


async def test_what_cannot_be_imported_is_refused_and_the_rest_goes_on(house: House) -> None:
    results = await imported(house, *(make() for make, _ in BAD.values()), record("good"))
    for result, (case, (_, sentence)) in zip(results, BAD.items(), strict=False):
        assert sentence in result.refused.message, case
    assert results[-1].WhichOneof("result") == "accepted"
    assert [result.index for result in results] == list(range(len(BAD) + 1))
    assert len(house.responses()) == 2


async def test_a_key_for_chat_alone_may_not_import(house: House) -> None:
    key = house.access.create("default", [Role.CHAT])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{house.port}") as channel:
        call = feedback_pb2_grpc.ImportServiceStub(channel).ImportResponses(iter([record()]), metadata=metadata(key))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
