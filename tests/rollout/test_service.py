from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from attune import rpc
from attune.access import Role
from attune.rollout.promotion import Promotion
from attune.rollout.service import PolicyService
from attune.v1 import policy_pb2, policy_pb2_grpc
from tests.keyed import key_store, keyed_channel
from tests.persona_files import stored
from tests.registry.adapters import BASE
from tests.rollout.house import PERSONAS, House


@pytest_asyncio.fixture
async def channel(house: House) -> AsyncIterator[grpc.aio.Channel]:
    store, api_key = key_store(house.data)
    server = rpc.Server(store, max_message_bytes=1 << 16)
    service = PolicyService(house.registry, house.log, house.personas(), base_model_hash=BASE)
    server.add(policy_pb2_grpc.add_PolicyServiceServicer_to_server, service)
    port = server.bind("127.0.0.1", 0, None)
    await server.start()
    async with keyed_channel(f"127.0.0.1:{port}", api_key) as channel:
        yield channel
    await server.stop(None)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> "policy_pb2_grpc.PolicyServiceAsyncStub":
    return policy_pb2_grpc.PolicyServiceStub(channel)


async def refusal(call: "grpc.aio.UnaryUnaryCall[object, object]") -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""


async def test_policies_are_listed_newest_first_with_their_verdicts(
    house: House, stub: "policy_pb2_grpc.PolicyServiceAsyncStub"
) -> None:
    passed, refused, unjudged = house.publish(), house.publish(passed=False), house.publish(passed=None)
    house.publish(persona="tutor")

    policies = (await stub.ListPolicies(policy_pb2.ListPoliciesRequest())).policies

    assert [policy.policy_id for policy in policies] == [unjudged, refused, passed]
    assert [policy.HasField("verdict") for policy in policies] == [False, True, True]
    assert [policy.verdict.passed for policy in policies[1:]] == [False, True]
    assert policies[2].base_model_hash == BASE
    assert policies[2].dataset_ids == ["d-1"]
    assert policies[2].verdict.checks[0].reason == "held-out margin is 0.25 nats; more than 0 is wanted"


async def test_a_forged_verdict_is_not_shown(house: House, stub: "policy_pb2_grpc.PolicyServiceAsyncStub") -> None:
    policy_id = house.publish(passed=False)
    file = house.data / "registry" / "policies" / policy_id / "verdict.json"
    file.write_bytes(file.read_bytes().replace(b"false", b"true"))
    policies = (await stub.ListPolicies(policy_pb2.ListPoliciesRequest())).policies
    assert [policy.HasField("verdict") for policy in policies] == [False]


async def test_the_rollout_before_any_entry_is_the_base_model(
    stub: "policy_pb2_grpc.PolicyServiceAsyncStub",
) -> None:
    answer = await stub.GetRollout(policy_pb2.GetRolloutRequest(persona="tutor"))
    assert (answer.current.number, answer.current.persona) == (0, "tutor")
    assert [(share.policy_id, share.share) for share in answer.current.shares] == [("base", 1.0)]
    assert not answer.history


async def test_going_back_undoes_step_by_step_and_is_kept_in_the_log(
    house: House, stub: "policy_pb2_grpc.PolicyServiceAsyncStub"
) -> None:
    promotion = house.promotion()
    first = house.publish()
    promotion.turn()
    second = house.publish()
    promotion.turn()

    answer = await stub.RollBack(policy_pb2.RollBackRequest(reason="too chatty"))
    assert (answer.current.number, answer.current.author, answer.current.reason) == (3, "operator", "too chatty")
    assert answer.current.shares[0].policy_id == first
    await stub.RollBack(policy_pb2.RollBackRequest(persona="concierge"))
    assert (await refusal(stub.RollBack(policy_pb2.RollBackRequest())))[0] == "FAILED_PRECONDITION"
    promotion.turn()
    await stub.RollBack(policy_pb2.RollBackRequest(policy_id=second))

    rollout = await stub.GetRollout(policy_pb2.GetRolloutRequest())
    assert [entry.shares[0].policy_id for entry in rollout.history] == [second, "base", first, second, first]
    assert [entry.author for entry in rollout.history] == ["operator", "operator", "operator", "gate", "gate"]
    assert rollout.current == rollout.history[0]


async def test_every_refusal_has_its_status_and_writes_nothing(
    house: House, stub: "policy_pb2_grpc.PolicyServiceAsyncStub"
) -> None:
    serving = house.publish()
    house.promotion().turn()
    refused = house.publish(passed=False)
    unjudged = house.publish(passed=None)
    elsewhere = house.publish(base_model_hash="c" * 64)
    tutors = house.publish(persona="tutor")
    damaged = house.publish()
    weights = house.data / "registry" / "policies" / damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    linked = house.publish()
    folder = house.data / "registry" / "policies" / linked
    folder.rename(house.data / "elsewhere")
    folder.symlink_to(house.data / "elsewhere")

    expected = {
        "p-000099": "NOT_FOUND",
        tutors: "NOT_FOUND",
        serving: "FAILED_PRECONDITION",
        refused: "FAILED_PRECONDITION",
        unjudged: "FAILED_PRECONDITION",
        elsewhere: "FAILED_PRECONDITION",
        damaged: "DATA_LOSS",
        linked: "INVALID_ARGUMENT",
        "../p-000001": "INVALID_ARGUMENT",
        "https://example.org/p-000001": "INVALID_ARGUMENT",
        "p-000001\0": "INVALID_ARGUMENT",
        "x" * 10_000: "INVALID_ARGUMENT",
    }
    for policy_id, status in expected.items():
        assert (await refusal(stub.RollBack(policy_pb2.RollBackRequest(policy_id=policy_id))))[0] == status, policy_id

    status, sentence = await refusal(stub.RollBack(policy_pb2.RollBackRequest(reason="x" * 1001)))
    assert (status, sentence) == ("INVALID_ARGUMENT", "reason has 1001 characters; at most 1000 are taken")
    for call in (
        stub.RollBack(policy_pb2.RollBackRequest(persona="nobody")),
        stub.GetRollout(policy_pb2.GetRolloutRequest(persona="../concierge")),
        stub.ListPolicies(policy_pb2.ListPoliciesRequest(persona="nobody")),
    ):
        assert (await refusal(call))[0] == "NOT_FOUND"
    assert house.entered() == [serving]


@pytest.mark.parametrize("method", ["ListPolicies", "GetRollout", "RollBack"])
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xc3\x28"])
async def test_bytes_that_are_no_message_are_refused(channel: grpc.aio.Channel, method: str, data: bytes) -> None:
    call = channel.unary_unary(f"/attune.v1.PolicyService/{method}")
    assert (await refusal(call(data)))[0] == "INVALID_ARGUMENT"


async def test_a_damaged_log_is_data_loss_for_the_caller(
    house: House, stub: "policy_pb2_grpc.PolicyServiceAsyncStub"
) -> None:
    house.publish()
    house.promotion().turn()
    (house.data / "registry" / "rollouts" / "default" / "concierge" / "1.json").write_bytes(b"{")
    assert (await refusal(stub.GetRollout(policy_pb2.GetRolloutRequest())))[0] == "DATA_LOSS"
    assert (await refusal(stub.RollBack(policy_pb2.RollBackRequest(policy_id="base"))))[0] == "DATA_LOSS"


@pytest.mark.parametrize("method", ["ListPolicies", "GetRollout", "ApprovePolicy", "RollBack"])
async def test_another_tenant_sees_no_persona_of_the_first(house: House, method: str) -> None:
    store, _ = key_store(house.data)
    policy_id = house.publish()
    server = rpc.Server(store, max_message_bytes=1 << 16)
    service = PolicyService(house.registry, house.log, house.personas(), base_model_hash=BASE)
    server.add(policy_pb2_grpc.add_PolicyServiceServicer_to_server, service)
    port = server.bind("127.0.0.1", 0, None)
    await server.start()
    request = getattr(policy_pb2, f"{method}Request")(persona="concierge")
    if method in ("ApprovePolicy", "RollBack"):
        request.policy_id = policy_id
    async with keyed_channel(f"127.0.0.1:{port}", store.create("acme", tuple(Role))) as channel:
        code, _ = await refusal(getattr(policy_pb2_grpc.PolicyServiceStub(channel), method)(request, timeout=10))
    await server.stop(None)
    assert code == "NOT_FOUND"


async def test_where_a_person_is_to_approve_a_policy_waits_for_it(house: House) -> None:
    store, api_key = key_store(house.data)
    careful = stored(house.data, {name: f'{text}\napproval = "person"' for name, text in PERSONAS.items()})
    policy_id = house.publish()
    Promotion(
        house.registry, house.log, careful, base_model_hash=BASE, datasets=house.data / "datasets", withdraw_hours=24
    ).turn()
    assert house.log.current("default", "concierge") is None
    server = rpc.Server(store, max_message_bytes=1 << 16)
    service = PolicyService(house.registry, house.log, careful, base_model_hash=BASE)
    server.add(policy_pb2_grpc.add_PolicyServiceServicer_to_server, service)
    port = server.bind("127.0.0.1", 0, None)
    await server.start()
    async with keyed_channel(f"127.0.0.1:{port}", api_key) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        (listed,) = (await stub.ListPolicies(policy_pb2.ListPoliciesRequest())).policies
        assert listed.awaits_approval
        code, _ = await refusal(stub.ApprovePolicy(policy_pb2.ApprovePolicyRequest(policy_id="base")))
        assert code == "INVALID_ARGUMENT"
        approved = await stub.ApprovePolicy(policy_pb2.ApprovePolicyRequest(policy_id=policy_id, reason="read it"))
        assert (approved.current.author, approved.current.shares[0].policy_id) == ("operator", policy_id)
        assert not (await stub.ListPolicies(policy_pb2.ListPoliciesRequest())).policies[0].awaits_approval
    await server.stop(None)
