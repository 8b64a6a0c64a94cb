"""Feedback over gRPC: durable before it is acknowledged, and about the right response."""

from attune.ids import hash_end_user
from attune.v1 import event_pb2, feedback_pb2
from tests.inference.house import House, ask


async def test_a_vote_by_token_says_whose_it_is_on_what(house: House) -> None:
    answer = await house.stub.Chat(ask(persona="tutor"), timeout=60)
    (response,) = answer.responses
    acknowledged = await house.feedback.SubmitFeedback(
        feedback_pb2.SubmitFeedbackRequest(
            feedback_token=response.feedback_token, thumb=event_pb2.THUMB_DOWN, comment="too long", revision=2
        )
    )
    (event,) = house.thumbs()
    assert event.header.event_id == acknowledged.feedback_id
    assert event.header.tenant == "default"
    assert event.response_id == response.response_id
    assert (event.persona, event.conversation_id) == ("tutor", answer.conversation_id)
    assert event.end_user == hash_end_user("default", "u-1", house.keys.end_user)
    assert (event.thumb, event.comment, event.revision) == (event_pb2.THUMB_DOWN, "too long", 2)
    assert not event.retracted


async def test_a_vote_by_bare_id_needs_no_token(house: House) -> None:
    response_id = (await house.stub.Chat(ask(), timeout=60)).responses[0].response_id
    await house.feedback.SubmitFeedback(
        feedback_pb2.SubmitFeedbackRequest(response_id=response_id, end_user_id="u-2", thumb=event_pb2.THUMB_UP)
    )
    (event,) = house.thumbs()
    assert (event.response_id, event.persona, event.conversation_id) == (response_id, "", "")
    assert event.end_user == hash_end_user("default", "u-2", house.keys.end_user)


async def test_a_vote_is_taken_back_without_saying_which_it_was(house: House) -> None:
    token = (await house.stub.Chat(ask(), timeout=60)).responses[0].feedback_token
    unsaid = event_pb2.THUMB_UNSPECIFIED
    await house.feedback.SubmitFeedback(
        feedback_pb2.SubmitFeedbackRequest(feedback_token=token, retracted=True, revision=1, thumb=unsaid)
    )
    (event,) = house.thumbs()
    assert event.retracted
    # Which kind of signal is taken back.
    assert event.WhichOneof("signal") == "thumb"
