"""Random and mutated messages: only documented statuses, and the server goes on serving."""

import asyncio
import os
from collections import Counter

import grpc
import hypothesis
from hypothesis import HealthCheck
from hypothesis import strategies as st

from attune.errors import STATUS
from attune.v1 import chat_pb2, event_pb2, feedback_pb2
from tests.inference.house import House, ask
from tests.keyed import metadata

EXAMPLES = int(os.environ.get("ATTUNE_TEST_EXAMPLES", "500"))
DOCUMENTED = {status.grpc for status in STATUS.values()} | {"OK"}

SEEDS = {
    "/attune.v1.ChatService/Chat": chat_pb2.ChatRequest(
        persona="tutor",
        messages=[event_pb2.Message(role=event_pb2.ROLE_USER, content="hello")],
        sampling=event_pb2.Sampling(temperature=0.5, max_tokens=2, stop=["x"], seed=3),
        metadata={"a": "b"},
        tools=[event_pb2.Tool(name="t", parameters_json='{"type": "object"}')],
        alternatives=2,
        top_logprobs=1,
    ),
    "/attune.v1.FeedbackService/SubmitFeedback": feedback_pb2.SubmitFeedbackRequest(
        response_id="r-1", end_user_id="u", tags=["wrong"], comment="c", rating=3, client_feedback_id="f"
    ),
}

mutations = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6)
payloads = st.tuples(st.sampled_from(sorted(SEEDS)), st.one_of(st.binary(max_size=200), mutations))


async def test_random_and_mutated_messages_bring_only_documented_statuses(house: House) -> None:
    seen = await asyncio.to_thread(_send_all, house)
    assert set(seen) <= DOCUMENTED
    assert seen["INVALID_ARGUMENT"] > 0
    assert (await house.stub.Chat(ask(max_tokens=2), timeout=60)).responses
    assert house.engine.unfinished == 0


def _send_all(house: House) -> Counter[str]:
    seen: Counter[str] = Counter()
    with grpc.insecure_channel(f"127.0.0.1:{house.port}") as channel:

        @hypothesis.settings(
            deadline=None,
            database=None,
            derandomize=True,
            max_examples=EXAMPLES,
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(payload=payloads)
        def attempt(payload: tuple[str, bytes | list[tuple[int, int]]]) -> None:
            method, change = payload
            data = change if isinstance(change, bytes) else _mutated(SEEDS[method].SerializeToString(), change)
            try:
                channel.unary_unary(method)(data, metadata=metadata(house.api_key), timeout=60)
                seen["OK"] += 1
            except grpc.RpcError as error:
                seen[error.code().name] += 1

        attempt()
    return seen


def _mutated(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for place, byte in changes:
        changed[place % len(changed)] = byte
    return bytes(changed)
