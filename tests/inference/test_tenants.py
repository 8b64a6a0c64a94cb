"""A second tenant tries everything with the first one's ids, and learns nothing: not even that they exist."""

from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest

from attune.access import RULES, Role
from attune.v1 import chat_pb2, event_pb2, feedback_pb2, policy_pb2
from tests.inference.house import House, ask

HIDDEN = {"NOT_FOUND", "PERMISSION_DENIED"}


class Ids:
    """What belongs to the first tenant."""

    def __init__(self, answer: chat_pb2.ChatResponse) -> None:
        self.response_id = answer.responses[0].response_id
        self.conversation_id = answer.conversation_id
        self.persona = "tutor"


# Each RPC and route that takes an id, with the first tenant's; a new one that is in neither table fails the test below.
ASKS: dict[str, Callable[[Ids], Any]] = {
    "attune.v1.ChatService/Chat": lambda ids: ask(persona=ids.persona),
    "attune.v1.ChatService/StreamChat": lambda ids: ask(persona=ids.persona),
    "attune.v1.FeedbackService/SubmitFeedback": lambda ids: feedback_pb2.SubmitFeedbackRequest(
        response_id=ids.response_id, thumb=event_pb2.THUMB_UP
    ),
    "POST /v1/chat/completions": lambda ids: {
        "model": ids.persona,
        "messages": [{"role": "user", "content": "hello"}],
    },
    "GET /v1/models/{model}": lambda ids: ids.persona,
    "POST /v1/feedback": lambda ids: {"response_id": ids.response_id, "thumb": "up"},
}
# Tried elsewhere: tests/rollout (policies), tests/aggregator (what it serves), below (batches, lists); or they take
# nothing of anybody's.
ELSEWHERE = {
    "attune.v1.FeedbackService/SubmitFeedbackBatch",
    "attune.v1.ImportService/ImportResponses",
    "attune.v1.PolicyService/ListPolicies",
    "attune.v1.ReceiptService/GetReceipts",
    "attune.v1.DatasetService/BuildDatasets",
    "attune.v1.DatasetService/ListDatasets",
    "attune.v1.DatasetService/GetDataset",
    "attune.v1.DatasetService/CompareDatasets",
    "attune.v1.DatasetService/VerifyDatasets",
    "attune.v1.DatasetService/ExplainExample",
    "attune.v1.LakeService/GetLakeStats",
    "attune.v1.LakeService/OptimizeLake",
    "attune.v1.LineageService/GetLineage",
    "attune.v1.LogService/TailLog",
    "attune.v1.ExportService/ExportRecords",
    "attune.v1.ErasureService/EraseUser",
    "attune.v1.ErasureService/GetErasure",
    "attune.v1.ErasureService/ListErasures",
    "attune.v1.PolicyService/GetRollout",
    "attune.v1.PolicyService/ApprovePolicy",
    "attune.v1.PolicyService/RollBack",
    "GET /v1/models",
}


def test_every_call_is_in_a_table() -> None:
    open_to_all = {name for name in RULES if RULES[name].open and name not in ASKS}
    assert set(RULES) == set(ASKS) | ELSEWHERE | open_to_all


@pytest.mark.parametrize("method", [name for name in ASKS if name.startswith("attune")])
async def test_a_stranger_gets_nothing_over_grpc(house: House, method: str) -> None:
    ids = Ids(await house.stub.Chat(ask(persona="tutor", max_tokens=2), timeout=60))
    stranger = (("authorization", f"Bearer {house.access.create('acme', tuple(Role))}"),)
    before = len(house.responses()), len(house.thumbs())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{house.port}") as channel:
        streams = method.endswith("StreamChat")
        call: Any = (channel.unary_stream if streams else channel.unary_unary)(f"/{method}")
        running = call(ASKS[method](ids).SerializeToString(), metadata=stranger, timeout=30)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await (running.read() if streams else running)
    assert refused.value.code().name in HIDDEN
    assert (len(house.responses()), len(house.thumbs())) == before


@pytest.mark.parametrize("route", [name for name in ASKS if "/v1/" in name and not name.startswith("attune")])
async def test_a_stranger_gets_nothing_over_http(house: House, route: str) -> None:
    ids = Ids(await house.stub.Chat(ask(persona="tutor", max_tokens=2), timeout=60))
    before = len(house.responses()), len(house.thumbs())
    headers = {"authorization": f"Bearer {house.access.create('acme', tuple(Role))}"}
    method, path = route.split()
    asked = ASKS[route](ids)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{house.http_port}", headers=headers) as http:
        if method == "GET":
            reply = await http.get(path.format(model=asked))
        else:
            reply = await http.post(path, json=asked)
    assert reply.status_code in (403, 404)
    assert (len(house.responses()), len(house.thumbs())) == before


async def test_a_strangers_batch_and_lists_hold_nothing_of_the_first(house: House) -> None:
    ids = Ids(await house.stub.Chat(ask(persona="tutor", max_tokens=2), timeout=60))
    key = house.access.create("acme", tuple(Role))
    mine, theirs = (
        feedback_pb2.SubmitFeedbackRequest(response_id=ids.response_id, thumb=event_pb2.THUMB_UP),
        feedback_pb2.SubmitFeedbackRequest(thumb=event_pb2.THUMB_UP),
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{house.port}") as channel:
        stub: Any = house.feedback.__class__(channel)
        call = stub.SubmitFeedbackBatch(iter([mine, theirs]), metadata=(("authorization", f"Bearer {key}"),))
        codes = [result.refused.code async for result in call]
    assert codes == [grpc.StatusCode.NOT_FOUND.value[0], grpc.StatusCode.INVALID_ARGUMENT.value[0]]
    assert not house.thumbs()
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}) as http:
        assert (await http.get(f"http://127.0.0.1:{house.http_port}/v1/models")).json()["data"] == []


async def test_a_batch_answers_each_in_order_and_goes_on_after_a_refusal(house: House) -> None:
    response_id = (await house.stub.Chat(ask(max_tokens=2), timeout=60)).responses[0].response_id
    requests = [
        feedback_pb2.SubmitFeedbackRequest(response_id=response_id, end_user_id=f"u-{number}", rating=number)
        for number in range(7)
    ]
    results = [result async for result in house.feedback.SubmitFeedbackBatch(iter(requests))]
    assert [result.index for result in results] == list(range(7))
    assert [result.WhichOneof("result") for result in results] == [
        "refused" if number in (0, 6) else "accepted" for number in range(7)
    ]
    assert sorted(event.rating for event in house.thumbs()) == [1, 2, 3, 4, 5]


async def test_the_same_feedback_id_is_a_duplicate_and_another_body_is_refused(house: House) -> None:
    response_id = (await house.stub.Chat(ask(max_tokens=2), timeout=60)).responses[0].response_id
    request = feedback_pb2.SubmitFeedbackRequest(response_id=response_id, rating=4, client_feedback_id="mine")
    first = await house.feedback.SubmitFeedback(request)
    again = await house.feedback.SubmitFeedback(request)
    assert (again.feedback_id, again.duplicate, first.duplicate) == (first.feedback_id, True, False)
    request.rating = 5
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await house.feedback.SubmitFeedback(request)
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert len(house.thumbs()) == 1


def test_policies_are_asked_for_by_persona_alone() -> None:
    """What tests/rollout relies on: no policy RPC takes a tenant from the caller's words."""
    for message in policy_pb2.DESCRIPTOR.message_types_by_name.values():
        assert "tenant" not in message.fields_by_name
