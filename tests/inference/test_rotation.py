"""Signing keys are rotated beside a running server, by another process's hands."""

import grpc
import pytest

from attune.signing import SigningKeys
from attune.v1 import event_pb2, feedback_pb2
from tests.inference.house import House, ask
from tests.inference.waiting import eventually

UP = event_pb2.THUMB_UP


async def test_votes_go_on_over_a_rotation_and_end_with_the_retirement_of_their_key(house: House) -> None:
    def signs_with(key_id: str) -> bool:
        return house.keys.signing.all()[-1].key_id == key_id

    (first,) = (await house.stub.Chat(ask(), timeout=60)).responses
    beside = SigningKeys(house.folder / "keys")
    beside.rotate(token_life_seconds=3600)
    await eventually(lambda: signs_with("k2"), seconds=2)

    (second,) = (await house.stub.Chat(ask(), timeout=60)).responses
    assert house.keys.signing.read_token(second.feedback_token, 0).key_id == "k2"
    for response in (first, second):
        await house.feedback.SubmitFeedback(by_token(response.feedback_token), timeout=10)
        await house.feedback.SubmitFeedback(by_id(response.response_id), timeout=10)

    beside.rotate(token_life_seconds=3600, retire=True)
    await eventually(lambda: signs_with("k3"), seconds=2)
    for request, status in (
        (by_token(first.feedback_token), grpc.StatusCode.PERMISSION_DENIED),
        (by_token(second.feedback_token), grpc.StatusCode.PERMISSION_DENIED),
        (by_id(second.response_id), grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await house.feedback.SubmitFeedback(request, timeout=10)
        assert refused.value.code() == status


def by_token(token: str) -> feedback_pb2.SubmitFeedbackRequest:
    return feedback_pb2.SubmitFeedbackRequest(feedback_token=token, thumb=UP)


def by_id(response_id: str) -> feedback_pb2.SubmitFeedbackRequest:
    return feedback_pb2.SubmitFeedbackRequest(response_id=response_id, end_user_id="u-1", thumb=UP)
