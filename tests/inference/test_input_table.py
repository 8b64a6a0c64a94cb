"""Each kind of input that is refused, through both doors: the same status, a sentence, and nothing is left behind.

What one door alone can be sent (types, shapes, bytes) stands in test_inputs.py and http/test_openai.py.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import httpx
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from attune.access import KeyLimits, Role
from attune.chat.template import ChatTemplate
from attune.errors import Unavailable
from attune.inference.engine import Engine
from attune.v1 import chat_pb2, event_pb2, feedback_pb2
from tests.inference.house import House, endless
from tests.inference.waiting import eventually
from tests.keyed import metadata

NAN, INFINITY = math.nan, math.inf
LONG = 900


@dataclass(frozen=True)
class Told:
    """What a caller is told, whichever door it came to: gRPC's name of the status, or OK."""

    status: str
    sentence: str = ""
    retry_seconds: float | None = None
    answer: dict[str, Any] | None = None


class Door(Protocol):
    """One way in. `body` is a chat or a feedback in the form of the HTTP API."""

    async def chat(self, body: dict[str, Any], *, key: str | None, request_id: str = "", seconds: float = 60) -> Told:
        """`key` None sends no credential."""

    async def feedback(self, body: dict[str, Any], *, key: str | None) -> Told: ...

    async def garbage(self, data: bytes, *, key: str) -> Told: ...


class HttpDoor:
    def __init__(self, house: House) -> None:
        self._url = f"http://127.0.0.1:{house.http_port}"

    async def chat(self, body: dict[str, Any], *, key: str | None, request_id: str = "", seconds: float = 60) -> Told:
        headers = {"attune-timeout-seconds": str(seconds)} | ({"idempotency-key": request_id} if request_id else {})
        return await self._post("/v1/chat/completions", json.dumps(body).encode(), key, headers)

    async def feedback(self, body: dict[str, Any], *, key: str | None) -> Told:
        return await self._post("/v1/feedback", json.dumps(body).encode(), key, {})

    async def garbage(self, data: bytes, *, key: str) -> Told:
        return await self._post("/v1/chat/completions", data, key, {})

    async def _post(self, path: str, content: bytes, key: str | None, headers: dict[str, str]) -> Told:
        headers = {**headers, "content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as http:
            reply = await http.post(path, content=content, headers=headers)
        if reply.status_code == 200:
            answer = reply.json()
            return Told("OK", answer={"id": answer.get("id") or answer.get("feedback_id"), **answer})
        error = reply.json()["error"]
        retry = reply.headers.get("retry-after-ms")
        return Told(error["code"].upper(), error["message"], None if retry is None else float(retry) / 1000)


class GrpcDoor:
    def __init__(self, house: House) -> None:
        self._address = f"127.0.0.1:{house.port}"

    async def chat(self, body: dict[str, Any], *, key: str | None, request_id: str = "", seconds: float = 60) -> Told:
        request = chat_request(body, request_id)
        return await self._call("ChatService/Chat", request.SerializeToString(), key, seconds, chat_pb2.ChatResponse)

    async def feedback(self, body: dict[str, Any], *, key: str | None) -> Told:
        message = feedback_request(body).SerializeToString()
        return await self._call("FeedbackService/SubmitFeedback", message, key, 60, feedback_pb2.SubmitFeedbackResponse)

    async def garbage(self, data: bytes, *, key: str) -> Told:
        return await self._call("ChatService/Chat", data, key, 60, chat_pb2.ChatResponse)

    async def _call(self, method: str, data: bytes, key: str | None, seconds: float, kind: Any) -> Told:
        async with grpc.aio.insecure_channel(self._address) as channel:
            call: Any = channel.unary_unary(f"/attune.v1.{method}", response_deserializer=kind.FromString)
            try:
                answer = await call(data, timeout=seconds, metadata=metadata(key) if key else None)
            except grpc.aio.AioRpcError as error:
                return Told(error.code().name, error.details() or "", retry_seconds(error))
        if isinstance(answer, feedback_pb2.SubmitFeedbackResponse):
            return Told("OK", answer={"id": answer.feedback_id, "duplicate": answer.duplicate})
        (response,) = answer.responses
        told = {"id": response.response_id, "feedback_token": response.feedback_token, "replayed": answer.replayed}
        return Told("OK", answer=told)


def retry_seconds(error: grpc.aio.AioRpcError) -> float | None:
    packed = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    retry = error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(packed).details:
        if detail.Unpack(retry):
            return float(retry.retry_delay.ToTimedelta().total_seconds())
    return None


ROLES = {"system": 1, "user": 2, "assistant": 3, "tool": 4}
SAMPLING = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "max_tokens", "seed")


def chat_request(body: dict[str, Any], request_id: str) -> chat_pb2.ChatRequest:
    persona, _, policy_id = body["model"].partition("@")
    request = chat_pb2.ChatRequest(
        persona=persona,
        policy_id=policy_id,
        messages=[
            event_pb2.Message(role=ROLES.get(each["role"], 9), content=each["content"])  # type: ignore[arg-type]
            for each in body["messages"]
        ],
        alternatives=body.get("n", 1),
        client_request_id=request_id,
    )
    for name in SAMPLING:
        if name in body:
            setattr(request.sampling, name, body[name])
    request.sampling.stop.extend(body.get("stop", ()))
    return request


def feedback_request(body: dict[str, Any]) -> feedback_pb2.SubmitFeedbackRequest:
    fields = dict(body)
    if "thumb" in fields:
        fields["thumb"] = {"up": 1, "down": 2}.get(fields["thumb"], 7)
    ranking = fields.pop("ranking", None)
    request = feedback_pb2.SubmitFeedbackRequest(**fields)
    for entry in ranking or ():
        request.ranking.entries.add(**entry)
    return request


@pytest.fixture(params=["grpc", "http"])
def way(request: pytest.FixtureRequest) -> Callable[[House], Door]:
    return {"grpc": GrpcDoor, "http": HttpDoor}[request.param]


@pytest.fixture
def door(way: Callable[[House], Door], house: House) -> Door:
    return way(house)


@pytest_asyncio.fixture
async def narrow(tmp_path: Path, engine: Engine, template: ChatTemplate, demo_model: Path) -> AsyncIterator[House]:
    """One answer at a time, which goes on to max_tokens."""
    async with House.open(tmp_path, endless(engine), template, demo_model, max_concurrent=1) as house:
        yield house


def said(content: str = "hello there", model: str = "concierge", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}


async def unharmed(house: House, *, responses: int = 0, feedback: int = 0) -> None:
    assert (len(house.responses()), len(house.thumbs())) == (responses, feedback)
    assert house.chat.admission.running == 0
    assert house.engine.unfinished == 0


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b'{"model": "\xff"}', b"\x12\x04\x12\x02\xc3\x28"])
async def test_bytes_that_are_no_message_and_bad_utf8(house: House, door: Door, data: bytes) -> None:
    assert (await door.garbage(data, key=house.api_key)).status == "INVALID_ARGUMENT"
    await unharmed(house)


async def test_credentials_that_are_missing_or_wrong_or_lack_the_role(house: House, door: Door) -> None:
    assert (await door.chat(said(), key=None)).status == "UNAUTHENTICATED"
    assert (await door.chat(said(), key="ak-nobody-knows")).status == "UNAUTHENTICATED"
    voter = house.access.create("default", (Role.FEEDBACK,))
    assert (await door.chat(said(), key=voter)).status == "PERMISSION_DENIED"
    chatter = house.access.create("default", (Role.CHAT,))
    assert (await door.chat(said(model="concierge@base"), key=chatter)).status == "PERMISSION_DENIED"
    vote = {"response_id": house.keys.signing.new_response_id("default"), "thumb": "up"}
    assert (await door.feedback(vote, key=chatter)).status == "PERMISSION_DENIED"
    assert (await door.feedback(vote, key=None)).status == "UNAUTHENTICATED"
    await unharmed(house)


OUT_OF_RANGE: dict[str, dict[str, Any]] = {
    "no messages": {"messages": []},
    "unknown role": {"messages": [{"role": "cat", "content": "meow"}]},
    "prompt too long": {"messages": [{"role": "user", "content": "word " * 3000}]},
    "prompt and max_tokens too long": {"max_tokens": 1020},
    **{
        f"{name} {value}": {name: value}
        for name, values in {
            "temperature": (-0.1, 2.1, NAN, INFINITY),
            "top_p": (0, 1.01, NAN),
            "top_k": (1001,),
            "presence_penalty": (-2.5, 2.5, NAN),
            "frequency_penalty": (-INFINITY, 2.5),
            "max_tokens": (0, 2**32 - 1),
            "seed": (2**63,),
            "n": (9,),
        }.items()
        for value in values
    },
    "stop count": {"stop": list("abcde")},
    "stop empty": {"stop": [""]},
    "stop long": {"stop": ["a" * 65]},
}


@pytest.mark.parametrize("case", OUT_OF_RANGE)
async def test_chat_fields_outside_their_range(house: House, door: Door, case: str) -> None:
    told = await door.chat(said(**OUT_OF_RANGE[case]), key=house.api_key)
    assert told.status == "INVALID_ARGUMENT", told
    assert told.sentence
    await unharmed(house)


async def test_special_tokens_typed_as_text_stay_text(house: House, door: Door, template: ChatTemplate) -> None:
    special = template.render("", [event_pb2.Message(role=event_pb2.ROLE_USER, content="x")])[0]
    assert (await door.chat(said("hello"), key=house.api_key)).status == "OK"
    assert (await door.chat(said(f"{template.decode([special])} hello"), key=house.api_key)).status == "OK"
    plain, typed = (list(event.prompt_token_ids).count(special) for event in house.responses())
    assert typed == plain > 0


async def test_personas_and_policies_that_are_not_there_or_not_loaded(
    house: House, door: Door, adapter: Callable[[int], Path]
) -> None:
    policy_id = await house.publish(adapter(1))
    for model, status in {
        "nobody": "NOT_FOUND",
        "../concierge": "NOT_FOUND",
        "concierge@p-000777": "NOT_FOUND",
        f"concierge@{policy_id}": "FAILED_PRECONDITION",
    }.items():
        told = await door.chat(said(model=model), key=house.api_key)
        assert (model, told.status) == (model, status)
    await unharmed(house)


@pytest.mark.parametrize("policy_id", ["../p-000001", "/etc/passwd", "http://example.org/p", "p-1", "p-000001\0"])
async def test_a_policy_id_that_is_something_else(house: House, door: Door, policy_id: str) -> None:
    told = await door.chat(said(model=f"concierge@{policy_id}"), key=house.api_key)
    assert told.status == "INVALID_ARGUMENT"
    await unharmed(house)


async def test_the_same_request_id_again_and_for_something_else(house: House, door: Door) -> None:
    first = await door.chat(said(), key=house.api_key, request_id="mine")
    again = await door.chat(said(), key=house.api_key, request_id="mine")
    other = await door.chat(said("good morning"), key=house.api_key, request_id="mine")
    assert first.answer is not None
    assert again.answer is not None
    assert (again.answer["id"], again.answer["replayed"]) == (first.answer["id"], True)
    assert other.status == "ALREADY_EXISTS"
    await unharmed(house, responses=1)


async def test_a_request_id_that_still_runs_and_a_deadline_that_passes(
    way: Callable[[House], Door], endless_house: House
) -> None:
    house, door = endless_house, way(endless_house)
    running = asyncio.create_task(door.chat(said(max_tokens=LONG), key=house.api_key, request_id="mine", seconds=1.5))
    await eventually(lambda: house.engine.unfinished == 1)
    again = await door.chat(said(max_tokens=LONG), key=house.api_key, request_id="mine")
    assert (again.status, again.retry_seconds is not None) == ("ABORTED", True)
    assert (await running).status == "DEADLINE_EXCEEDED"
    await eventually(lambda: house.engine.unfinished == 0)
    await eventually(lambda: len(house.responses()) == 1)
    assert house.responses()[0].finish_reason == event_pb2.FINISH_REASON_ABORTED


async def test_over_a_keys_rate_it_is_said_when_to_come_back(house: House, door: Door) -> None:
    key = house.access.create("default", (Role.CHAT,), limits=KeyLimits(requests_per_minute=1))
    assert (await door.chat(said(), key=key)).status == "OK"
    told = await door.chat(said(), key=key)
    assert (told.status, told.retry_seconds is not None) == ("RESOURCE_EXHAUSTED", True)
    await unharmed(house, responses=1)


async def test_a_full_server_says_when_to_come_back(way: Callable[[House], Door], narrow: House) -> None:
    door = way(narrow)
    running = asyncio.create_task(door.chat(said(max_tokens=LONG), key=narrow.api_key))
    await eventually(lambda: narrow.engine.unfinished == 1)
    told = await door.chat(said(), key=narrow.api_key)
    assert (told.status, told.retry_seconds is not None) == ("RESOURCE_EXHAUSTED", True)
    assert (await running).status == "OK"


async def test_a_draining_server_says_when_to_come_back(house: House, door: Door) -> None:
    house.chat.admission.shut("stopping", Unavailable("the server is stopping", retry_after_seconds=5))
    told = await door.chat(said(), key=house.api_key)
    assert (told.status, told.retry_seconds) == ("UNAVAILABLE", 5)
    await unharmed(house)


async def test_a_full_event_log_refuses_anew(
    way: Callable[[House], Door], tmp_path: Path, engine: Engine, template: ChatTemplate, demo_model: Path
) -> None:
    async with House.open(tmp_path, engine, template, demo_model, max_log_bytes=1 << 14) as house:
        told = await way(house).chat(said(max_tokens=LONG), key=house.api_key)
        assert (told.status, told.retry_seconds is not None) == ("RESOURCE_EXHAUSTED", True)
        await unharmed(house)


async def answered(house: House, door: Door, content: str = "hello there") -> str:
    """The feedback token of a response."""
    told = await door.chat(said(content), key=house.api_key)
    assert told.answer is not None
    return str(told.answer["feedback_token"])


async def test_feedback_that_may_not_be_given(house: House, door: Door) -> None:
    token = await answered(house, door)
    forged = token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1]
    assert (await door.feedback({"feedback_token": forged, "thumb": "up"}, key=None)).status == "PERMISSION_DENIED"
    theirs = {"response_id": house.keys.signing.new_response_id("other"), "thumb": "up"}
    nobodys = {"response_id": "r-1", "thumb": "up"}
    told = [await door.feedback(body, key=house.api_key) for body in (theirs, nobodys)]
    assert told[0] == told[1] == Told("NOT_FOUND", "no such response")
    await unharmed(house, responses=1)


async def test_an_expired_token(house: House, door: Door) -> None:
    house.chat.feedback_token_seconds = -1
    token = await answered(house, door)
    told = await door.feedback({"feedback_token": token, "thumb": "up"}, key=None)
    assert (told.status, "expired" in told.sentence) == ("PERMISSION_DENIED", True)
    await unharmed(house, responses=1)


async def test_the_same_feedback_again_and_another_under_its_id(house: House, door: Door) -> None:
    vote = {"feedback_token": await answered(house, door), "thumb": "up", "client_feedback_id": "f-1"}
    first, again = await door.feedback(vote, key=None), await door.feedback(vote, key=None)
    assert first.answer is not None
    assert again.answer is not None
    assert (again.answer["id"], again.answer["duplicate"]) == (first.answer["id"], True)
    assert (await door.feedback({**vote, "thumb": "down"}, key=None)).status == "ALREADY_EXISTS"
    await unharmed(house, responses=1, feedback=1)


BAD_FEEDBACK: dict[str, dict[str, Any]] = {
    "rating 0": {"rating": 0},
    "rating 6": {"rating": 6},
    "unknown thumb": {"thumb": "sideways"},
    "long comment": {"thumb": "up", "comment": "c" * 4001},
    "propensity": {"thumb": "up", "propensity": 1.5},
    "unknown tag": {"thumb": "up", "tags": ["zzz"]},
}


@pytest.mark.parametrize("case", BAD_FEEDBACK)
async def test_feedback_outside_its_range(house: House, door: Door, case: str) -> None:
    body = {"feedback_token": await answered(house, door), **BAD_FEEDBACK[case]}
    assert (await door.feedback(body, key=None)).status == "INVALID_ARGUMENT"
    await unharmed(house, responses=1)


async def test_a_ranking_over_different_prompts(house: House, door: Door) -> None:
    tokens = [await answered(house, door, text) for text in ("hello there", "good morning")]
    body = {"ranking": [{"feedback_token": token, "rank": rank} for rank, token in enumerate(tokens, 1)]}
    told = await door.feedback(body, key=None)
    assert (told.status, "different prompts" in told.sentence) == ("INVALID_ARGUMENT", True)
    await unharmed(house, responses=2)
