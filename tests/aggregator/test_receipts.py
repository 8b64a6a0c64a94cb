"""What became of feedback, asked over the wire."""

import itertools
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from attune.access import Role
from attune.aggregator.reasons import reasons
from attune.aggregator.recipe import load_recipe, recipe_names
from attune.ids import new_event_id
from attune.v1 import dataset_pb2, event_pb2
from tests.aggregator.desk import Desk
from tests.aggregator.plant import Plant
from tests.lake.events import NOW_UNIX_MS, response_event, thumb_event

DOWN = event_pb2.THUMB_DOWN
Receipt = dataset_pb2.Receipt


@pytest_asyncio.fixture
async def desk(plant: Plant) -> AsyncIterator[Desk]:
    async with Desk.open(plant) as opened:
        yield opened


def notes(told: Receipt | dataset_pb2.ResponseState) -> list[str]:
    return [note.code for note in told.notes]


def ranking(number: int, *response_ids: str, **changes: Any) -> event_pb2.FeedbackEvent:
    changes = {"author": event_pb2.AUTHOR_APPLICATION} | changes
    event = thumb_event(number, 0, response_id=min(response_ids), name="digest", **changes)
    entries = [event_pb2.Ranking.Entry(response_id=one, rank=place) for place, one in enumerate(response_ids, 1)]
    event.ranking.CopyFrom(event_pb2.Ranking(entries=entries))
    return event


async def test_a_thumb_is_followed_from_the_lake_to_datasets_and_policies(desk: Desk) -> None:
    desk.plant.append(response_event(1), thumb_event(1, 1))
    desk.update()
    receipt = await desk.receipt("feedback-1")
    assert (receipt.state, receipt.kind, receipt.response_id) == (Receipt.STATE_COUNTS, "thumb", "r-1")
    assert notes(receipt) == ["no_dataset"]

    dataset = desk.plant.build().manifest
    policy_id = desk.publish(dataset.dataset_id, passed=None)
    desk.update()
    receipt = await desk.receipt("feedback-1")
    (use,) = receipt.datasets
    assert (use.dataset_id, use.recipe, use.created_unix_ms) == (dataset.dataset_id, "thumbs", NOW_UNIX_MS)
    (policy,) = receipt.policies
    assert (policy.policy_id, policy.split, policy.HasField("passed")) == (policy_id, use.split, False)
    assert not receipt.notes

    desk.judge(policy_id, passed=False)
    desk.update()
    (policy,) = (await desk.receipt("feedback-1")).policies
    assert (policy.HasField("passed"), policy.passed) == (True, False)


async def test_held_out_feedback_is_said_to_be_held_out(desk: Desk) -> None:
    desk.plant.append(response_event(1), thumb_event(1, 1))
    desk.update()
    dataset = desk.plant.build(heldout_share=0.999_999).manifest
    desk.publish(dataset.dataset_id)
    desk.update()
    receipt = await desk.receipt("feedback-1")
    assert (receipt.datasets[0].split, receipt.policies[0].split) == ("heldout", "heldout")


async def test_what_is_left_out_says_why_by_recipe_until_a_build_says_otherwise(desk: Desk) -> None:
    denied = response_event(1, consent=event_pb2.Consent(train=False))
    desk.plant.append(denied, thumb_event(1, 1), thumb_event(2, 2))
    desk.plant.ingest_all()
    desk.plant.build()
    desk.update()
    (left_out,) = (await desk.receipt("feedback-1")).left_out
    assert (left_out.recipe, left_out.reason) == ("thumbs", "not_consented")
    assert left_out.sentence == "learning from it was denied"
    receipt = await desk.receipt("feedback-2")
    assert [one.reason for one in receipt.left_out] == ["unknown_response"]
    assert notes(receipt) == ["response_not_stored"]

    desk.plant.append(response_event(2))
    desk.plant.ingest_all()
    desk.plant.build()
    desk.update()
    receipt = await desk.receipt("feedback-2")
    assert (len(receipt.datasets), list(receipt.left_out), notes(receipt)) == (1, [], [])


async def test_every_reason_of_every_recipe_has_a_sentence_in_its_header() -> None:
    for name in recipe_names():
        lines = [line for line in load_recipe(name).text.splitlines() if not line.endswith("END AS label,")]
        given = set(re.findall(r"THEN '([a-z_]+)'", "\n".join(lines)))
        assert given
        assert given <= reasons(name).keys(), name


async def test_a_later_revision_supersedes_in_every_order_of_arrival(desk: Desk) -> None:
    for response, order in enumerate(itertools.permutations(range(3))):
        votes = [thumb_event(10 * response + place, response, revision=place) for place in range(3)]
        desk.plant.append(response_event(response), *[votes[place] for place in order])
    desk.update()
    for response in range(6):
        for place in range(2):
            receipt = await desk.receipt(f"feedback-{10 * response + place}")
            assert receipt.state == Receipt.STATE_SUPERSEDED
            assert receipt.superseded_by == f"feedback-{10 * response + 2}"
        assert (await desk.receipt(f"feedback-{10 * response + 2}")).state == Receipt.STATE_COUNTS


async def test_a_higher_revision_counts_even_if_it_was_made_before(desk: Desk) -> None:
    desk.plant.append(response_event(1), thumb_event(1, 1, revision=2), thumb_event(2, 1, revision=1))
    desk.update()
    assert (await desk.receipt("feedback-1")).state == Receipt.STATE_COUNTS
    assert (await desk.receipt("feedback-2")).superseded_by == "feedback-1"


async def test_other_people_other_kinds_and_other_names_do_not_supersede(desk: Desk) -> None:
    outcome = event_pb2.Outcome(name="solved", flag=True)
    desk.plant.append(
        response_event(1),
        thumb_event(1, 1, end_user="ann"),
        thumb_event(2, 1, end_user="bob"),
        thumb_event(3, 1, end_user="ann", author=event_pb2.AUTHOR_REVIEWER),
        thumb_event(4, 1, end_user="ann", outcome=outcome, name="solved"),
        thumb_event(5, 1, end_user="ann", outcome=outcome, name="reopened"),
    )
    desk.update()
    states = [(await desk.receipt(f"feedback-{number}")).state for number in range(1, 6)]
    assert states == [Receipt.STATE_COUNTS] * 5


async def test_what_was_taken_back_is_retracted_and_so_is_what_it_took_back(desk: Desk) -> None:
    desk.plant.append(response_event(1), thumb_event(1, 1), thumb_event(2, 1, revision=1, retracted=True))
    desk.update()
    first, second = await desk.receipt("feedback-1"), await desk.receipt("feedback-2")
    assert (first.state, first.superseded_by) == (Receipt.STATE_RETRACTED, "feedback-2")
    assert (second.state, second.superseded_by) == (Receipt.STATE_RETRACTED, "")


async def test_the_same_feedback_through_another_replica_counts_once(desk: Desk) -> None:
    desk.plant.append(response_event(1))
    desk.plant.append(*[thumb_event(number, 1, client_feedback_id="mine") for number in (1, 3)])
    desk.update()
    second, first = (await desk.ask(client_feedback_id="mine")).receipts
    assert (first.feedback_id, first.state, first.superseded_by) == ("feedback-1", Receipt.STATE_REPEATED, "feedback-3")
    assert notes(first)[0] == "repeated_feedback"
    assert second.state == Receipt.STATE_COUNTS


async def test_ranked_responses_that_answer_different_prompts_are_noticed(desk: Desk) -> None:
    same = response_event(2)
    same.prompt_token_ids[:] = [1, 2, 1]
    desk.plant.append(response_event(1), same, response_event(3))
    desk.plant.append(ranking(1, "r-1", "r-2"), ranking(2, "r-2", "r-3"), ranking(3, "r-9", "r-1", end_user="ann"))
    desk.update()
    assert notes(await desk.receipt("feedback-1")) == ["no_dataset"]
    assert notes(await desk.receipt("feedback-2")) == ["different_prompts", "no_dataset"]
    assert notes(await desk.receipt("feedback-3")) == ["response_not_stored", "no_dataset"]


async def test_imported_answers_are_compared_by_their_messages(desk: Desk) -> None:
    one, other, else_ = (response_event(number, source=event_pb2.SOURCE_IMPORTED) for number in (1, 2, 3))
    for event in (one, other, else_):
        del event.prompt_token_ids[:]
    other.messages[1].content = one.messages[1].content
    desk.plant.append(one, other, else_, ranking(1, "r-1", "r-2"), ranking(2, "r-1", "r-3"))
    desk.update()
    assert "different_prompts" not in notes(await desk.receipt("feedback-1"))
    assert "different_prompts" in notes(await desk.receipt("feedback-2"))


async def test_an_answer_to_a_request_that_another_replica_answered_first_is_told_apart(desk: Desk) -> None:
    events = [response_event(number, client_request_id="same") for number in (1, 2)]
    for event in events:
        event.prompt_token_ids[:] = [1, 2, 3]
        event.response_id = desk.response_id()
    votes = [thumb_event(number, 0, response_id=event.response_id) for number, event in enumerate(events, 1)]
    desk.plant.append(*reversed(events), *votes)
    desk.update()
    assert "repeated_request" not in notes(await desk.receipt("feedback-1"))
    told = await desk.receipt("feedback-2")
    assert notes(told)[0] == "repeated_request"
    assert events[0].response_id in told.notes[0].sentence
    asked = await desk.ask(response_id=events[1].response_id)
    assert notes(asked.response) == ["repeated_request"]
    desk.plant.build()
    desk.update()
    assert [one.reason for one in (await desk.receipt("feedback-2")).left_out] == ["unknown_response"]


async def test_whose_answer_and_whose_persona_it_is_are_compared(desk: Desk) -> None:
    desk.plant.append(response_event(1, persona="tutor"), thumb_event(1, 1, end_user="somebody"), thumb_event(2, 1))
    desk.plant.append(thumb_event(3, 1, end_user="somebody", author=event_pb2.AUTHOR_REVIEWER))
    desk.update()
    assert notes(await desk.receipt("feedback-1")) == ["other_persona", "other_author", "no_dataset"]
    assert notes(await desk.receipt("feedback-2")) == ["other_persona", "no_dataset"]
    assert notes(await desk.receipt("feedback-3")) == ["other_persona", "no_dataset"]


async def test_all_feedback_on_a_response_comes_newest_first_rankings_too(desk: Desk) -> None:
    response_id, other = desk.response_id(), desk.response_id()
    desk.plant.append(response_event(1, response_id=response_id, policy_id="p-000003"))
    desk.plant.append(thumb_event(1, 1, response_id=response_id), ranking(2, other, response_id))
    desk.plant.append(*[thumb_event(number, number) for number in range(3, 9)])
    desk.update()
    told = await desk.ask(response_id=response_id)
    assert [receipt.feedback_id for receipt in told.receipts] == ["feedback-2", "feedback-1"]
    state = told.response
    assert (state.stored, state.persona, state.policy_id) == (True, "concierge", "p-000003")


async def test_feedback_that_is_on_its_way_is_not_stored_and_old_ids_are_unknown(desk: Desk) -> None:
    desk.plant.append(response_event(1), thumb_event(1, 1))
    desk.update()
    assert (await desk.receipt(new_event_id())).state == Receipt.STATE_NOT_STORED
    long_ago = "0180" + new_event_id()[4:]
    for feedback_id in (long_ago, "f" * 32, "nothing", "x" * 128):
        code, sentence = await desk.refused(feedback_id=feedback_id)
        assert code == "NOT_FOUND"
        assert sentence.startswith("no such feedback")
    response_id = desk.response_id()
    told = await desk.ask(response_id=response_id)
    assert (told.response.response_id, told.response.stored, len(told.receipts)) == (response_id, False, 0)


async def test_another_tenant_learns_nothing_not_even_that_it_exists(desk: Desk) -> None:
    fresh = thumb_event(1, 1, client_feedback_id="mine")
    fresh.header.event_id = new_event_id()
    response_id = desk.response_id()
    desk.plant.append(response_event(1, response_id=response_id), thumb_event(2, 1, response_id=response_id), fresh)
    desk.update()
    stranger = desk.access.create("acme", tuple(Role))
    assert await desk.refused(key=stranger, feedback_id="feedback-2") == await desk.refused(feedback_id="feedback-9")
    assert (await desk.refused(key=stranger, client_feedback_id="mine"))[0] == "NOT_FOUND"
    assert (await desk.refused(key=stranger, response_id=response_id))[0] == "NOT_FOUND"
    # A young id that the stranger did not get from us looks the same whether the other tenant has it or nobody.
    for feedback_id in (fresh.header.event_id, new_event_id()):
        told = await desk.ask(key=stranger, feedback_id=feedback_id)
        assert told == dataset_pb2.GetReceiptsResponse(
            receipts=[Receipt(feedback_id=feedback_id, state=Receipt.STATE_NOT_STORED)]
        )


async def test_a_token_tells_what_its_person_said_of_its_response_and_nothing_else(desk: Desk) -> None:
    response_id = desk.response_id()
    desk.plant.append(response_event(1, response_id=response_id))
    for number, changes in enumerate(
        [{}, {"end_user": "somebody"}, {"author": event_pb2.AUTHOR_REVIEWER}, {"response_id": "r-2"}]
    ):
        desk.plant.append(thumb_event(number, 1, **({"response_id": response_id} | changes)))
    desk.update()
    told = await desk.ask(key="", feedback_token=desk.token(response_id, "user-1"))
    assert [receipt.feedback_id for receipt in told.receipts] == ["feedback-0"]
    assert told.response.stored
    assert not (await desk.ask(key="", feedback_token=desk.token(response_id, "nobody"))).receipts


async def test_who_may_not_ask_and_what_cannot_be_asked_are_refused(desk: Desk) -> None:
    desk.update()
    token = desk.token("r-1", "user-1")
    forged = token[:-1] + ("A" if token[-1] != "A" else "B")
    chat_only = desk.access.create("default", (Role.CHAT,))
    assert (await desk.refused(key="", feedback_id="feedback-1"))[0] == "UNAUTHENTICATED"
    assert (await desk.refused(key="ak-x", feedback_id="feedback-1"))[0] == "UNAUTHENTICATED"
    assert (await desk.refused(key=chat_only, feedback_id="feedback-1"))[0] == "PERMISSION_DENIED"
    for text in (forged, "", "x" * 5000):
        assert (await desk.refused(key="", feedback_token=text))[0] == "PERMISSION_DENIED"
    assert (await desk.refused())[0] == "INVALID_ARGUMENT"
    for subject in ("feedback_id", "client_feedback_id", "response_id"):
        assert (await desk.refused(**{subject: ""}))[0] == "INVALID_ARGUMENT"
        assert (await desk.refused(**{subject: "x" * 129}))[0] == "INVALID_ARGUMENT"
    assert (await desk.refused(response_id="r-1"))[0] == "NOT_FOUND"
    for role in (Role.REVIEW, Role.OPERATE):
        key = desk.access.create("default", (role,))
        assert (await desk.refused(key=key, feedback_id="feedback-1"))[0] == "NOT_FOUND"


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xc3\x28"])
async def test_bytes_that_are_no_message_are_refused(desk: Desk, data: bytes) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{desk.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/attune.v1.ReceiptService/GetReceipts")(data, timeout=30)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_before_the_index_is_made_a_caller_is_told_to_come_again(desk: Desk) -> None:
    assert await desk.refused(feedback_id="feedback-1") == ("UNAVAILABLE", "receipts are not ready yet")
