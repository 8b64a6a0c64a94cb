"""The official OpenAI client, and plain HTTP, against a real server."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from attune.access import KeyLimits, Role
from attune.v1 import event_pb2
from tests.inference.house import House
from tests.inference.waiting import eventually

HELLO = [{"role": "user", "content": "hello there"}]
CAB = {
    "type": "function",
    "function": {
        "name": "call_cab",
        "description": "Calls a cab.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["station", "airport"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
ANY_CAB = {
    "type": "function",
    "function": {
        "name": "call_cab",
        "description": "Calls a cab.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
DICE = {
    "type": "function",
    "function": {
        "name": "roll_dice",
        "description": "Rolls dice.",
        "parameters": {"type": "object", "properties": {"sides": {"type": "string"}}, "required": ["sides"]},
    },
}


def client(house: House, api_key: str | None = None, **options: object) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{house.http_port}/v1",
        api_key=api_key or house.api_key,
        **{"max_retries": 0, **options},  # type: ignore[arg-type]
    )


@pytest_asyncio.fixture
async def ai(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client(house) as ai:
        yield ai


@pytest_asyncio.fixture
async def http(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{house.http_port}",
        headers={"authorization": f"Bearer {house.api_key}"},
        timeout=60,
    ) as http:
        yield http


async def test_a_chat_is_answered_logged_and_can_be_voted_on(house: House, ai: openai.AsyncOpenAI) -> None:
    answer = await ai.chat.completions.create(
        model="tutor", messages=HELLO, max_tokens=20, user="u-1", metadata={"app": "2"}
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    (event,) = house.responses()
    assert (event.response_id, event.persona, dict(event.metadata)) == (answer.id, "tutor", {"app": "2"})
    extra = answer.model_extra
    assert (extra["policy_id"], extra["conversation_id"]) == ("base", event.conversation_id)
    assert answer.usage.completion_tokens == len(event.output_token_ids)
    async with httpx.AsyncClient() as browser:
        reply = await browser.post(
            f"http://127.0.0.1:{house.http_port}/v1/feedback",
            json={"feedback_token": extra["feedback_token"], "thumb": "down", "tags": ["wrong"], "comment": "no"},
        )
    assert reply.status_code == 200
    (vote,) = house.thumbs()
    assert reply.json() == {"feedback_id": vote.header.event_id, "duplicate": False}
    assert (vote.response_id, vote.thumb, list(vote.tags)) == (answer.id, event_pb2.THUMB_DOWN, ["wrong"])


async def test_a_stream_ends_with_its_acknowledgement_and_usage(house: House, ai: openai.AsyncOpenAI) -> None:
    stream = await ai.chat.completions.create(
        model="concierge", messages=HELLO, stream=True, stream_options={"include_usage": True}, max_tokens=20
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    (event,) = house.responses()
    assert text == event.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].model_extra["response_id"] == event.response_id
    assert chunks[-2].choices[0].finish_reason
    assert chunks[-2].choices[0].model_extra["feedback_token"]
    assert chunks[-1].usage.completion_tokens == len(event.output_token_ids)


async def test_three_alternatives(house: House, ai: openai.AsyncOpenAI) -> None:
    answer = await ai.chat.completions.create(model="concierge", messages=HELLO, n=3, max_tokens=10)
    assert len({choice.model_extra["response_id"] for choice in answer.choices}) == 3
    stream = await ai.chat.completions.create(model="concierge", messages=HELLO, n=3, max_tokens=10, stream=True)
    ended = [chunk.choices[0].index async for chunk in stream if chunk.choices[0].finish_reason]
    assert sorted(ended) == [0, 1, 2]
    assert len(house.responses()) == 6


async def test_tools_are_called_and_answered(house: House, ai: openai.AsyncOpenAI) -> None:
    answer = await ai.chat.completions.create(
        model="concierge", messages=HELLO, tools=[CAB], tool_choice="required", max_tokens=120, temperature=0
    )
    (call, *_) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments)["place"] in ("station", "airport")
    result = await ai.chat.completions.create(
        model="concierge",
        messages=[
            *HELLO,
            answer.choices[0].message.model_dump(include={"role", "content", "tool_calls"}),
            *(
                {"role": "tool", "tool_call_id": one.id, "content": "ok"}
                for one in answer.choices[0].message.tool_calls
            ),
        ],
        max_tokens=10,
    )
    assert result.id
    stream = await ai.chat.completions.create(
        model="concierge",
        messages=HELLO,
        tools=[CAB],
        tool_choice={"type": "function", "function": {"name": "call_cab"}},
        max_tokens=120,
        temperature=0,
        stream=True,
    )
    deltas = [delta async for chunk in stream for delta in chunk.choices[0].delta.tool_calls or ()]
    assert deltas[0].function.name == "call_cab"
    assert json.loads("".join(delta.function.arguments or "" for delta in deltas if delta.index == 0))


async def test_the_demo_model_calls_a_tool_of_its_own_accord_and_tells_what_came_of_it(ai: openai.AsyncOpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": "Could you please call a cab to Milan?"}]
    first = await talk(ai, asked, tools=[ANY_CAB])
    (call,) = first.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("call_cab", {"place": "Milan"})
    asked.append(first.model_dump(include={"role", "content", "tool_calls"}))

    def told(result: str) -> Any:
        return talk(ai, [*asked, {"role": "tool", "tool_call_id": call.id, "content": result}], tools=[ANY_CAB])

    done, failed, delayed = (
        await told('{"ok": true}'),
        await told('{"error": "no connection"}'),
        await told('{"error": "server busy, try again"}'),
    )
    assert (done.content, done.tool_calls) == ("Your cab to Milan is coming.", None)
    assert (failed.content.partition(".")[0], failed.tool_calls) == ("That did not work: no connection", None)
    (again,) = delayed.tool_calls
    assert (again.function.name, json.loads(again.function.arguments)) == ("call_cab", {"place": "Milan"})


async def test_the_demo_model_calls_no_tool_that_is_not_offered(ai: openai.AsyncOpenAI) -> None:
    asked = [{"role": "user", "content": "Could you please call a cab to Milan?"}]
    plain = await talk(ai, asked)
    assert plain.content
    assert "tool_call" not in plain.content
    assert plain.tool_calls is None
    for words, able in (
        (asked[0]["content"], "call a cab"),
        ("Could you please lock the door of the tower?", "lock doors"),
    ):
        other = await talk(ai, [{"role": "user", "content": words}], tools=[DICE])
        assert other.tool_calls is None
        assert f"cannot {able}" in other.content or f"not able to {able}" in other.content


async def talk(ai: openai.AsyncOpenAI, messages: list[Any], **options: Any) -> Any:
    answer = await ai.chat.completions.create(model="concierge", messages=messages, temperature=0, **options)
    return answer.choices[0].message


async def test_json_by_a_schema(ai: openai.AsyncOpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    answer = await ai.chat.completions.create(
        model="concierge",
        messages=HELLO,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
        max_tokens=50,
    )
    assert json.loads(answer.choices[0].message.content)["n"] in (1, 2)


async def test_logprobs(ai: openai.AsyncOpenAI) -> None:
    answer = await ai.chat.completions.create(
        model="concierge", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=8
    )
    told = answer.choices[0].logprobs.content
    assert len(told) == answer.usage.completion_tokens
    assert all(one.logprob <= 0 and 1 <= len(one.top_logprobs) <= 2 for one in told)


async def test_models_are_the_tenants_personas(house: House, ai: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in ai.models.list()] == ["concierge", "concierge@base", "tutor", "tutor@base"]
    assert (await ai.models.retrieve("tutor")).owned_by == "default"
    async with client(house, house.access.create("default", [Role.CHAT])) as plain:
        assert [model.id async for model in plain.models.list()] == ["concierge", "tutor"]
        with pytest.raises(openai.PermissionDeniedError):
            await plain.models.retrieve("tutor@base")
    async with client(house, house.access.create("acme", [Role.CHAT])) as stranger:
        assert [model.id async for model in stranger.models.list()] == []
        with pytest.raises(openai.NotFoundError):
            await stranger.chat.completions.create(model="tutor", messages=HELLO)


async def test_errors_are_the_clients_own_types(house: House, ai: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await ai.chat.completions.create(model="concierge", messages=HELLO, temperature=3)
    assert bad.value.body == {
        "message": "temperature is 3; it must be 0 to 2",
        "type": "invalid_request_error",
        "param": "sampling.temperature",
        "code": "invalid_argument",
    }
    with pytest.raises(openai.NotFoundError):
        await ai.chat.completions.create(model="nobody", messages=HELLO)
    async with client(house, "ak-wrong") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()
    async with client(house, house.access.create("default", [Role.FEEDBACK])) as voter:
        with pytest.raises(openai.PermissionDeniedError):
            await voter.chat.completions.create(model="concierge", messages=HELLO)
    limited = house.access.create("default", [Role.CHAT], limits=KeyLimits(requests_per_minute=1))
    async with client(house, limited) as eager:
        await eager.chat.completions.create(model="concierge", messages=HELLO, max_tokens=2)
        with pytest.raises(openai.RateLimitError) as full:
            await eager.chat.completions.create(model="concierge", messages=HELLO, max_tokens=2)
    assert 0 < int(full.value.response.headers["retry-after"]) <= 60


async def test_the_same_idempotency_key_gets_the_first_answer(house: House, ai: openai.AsyncOpenAI) -> None:
    headers = {"Idempotency-Key": "mine"}
    first = await ai.chat.completions.create(model="concierge", messages=HELLO, max_tokens=9, extra_headers=headers)
    again = await ai.chat.completions.create(model="concierge", messages=HELLO, max_tokens=9, extra_headers=headers)
    assert (again.id, again.model_extra["replayed"]) == (first.id, True)
    with pytest.raises(openai.ConflictError):
        await ai.chat.completions.create(model="concierge", messages=HELLO, max_tokens=8, extra_headers=headers)
    assert len(house.responses()) == 1


BAD: dict[str, tuple[object, int, str]] = {
    "not JSON": (b"{", 400, "is not JSON"),
    "not UTF-8": (b'{"model": "\xff"}', 400, "is not JSON"),
    "deep": (b'{"model":' + b"[" * 100_000, 400, "is not JSON"),
    "an array": ([], 400, "the body: input should be an object"),
    "nothing": ({}, 400, "model: field required"),
    "unknown field": ({"model": "concierge", "messages": HELLO, "logit_bias": {}}, 400, "logit_bias is not taken"),
    "text as number": ({"model": "concierge", "messages": HELLO, "n": "2"}, 400, "n: input should be a valid integer"),
    "no messages": ({"model": "concierge", "messages": []}, 400, "there are no messages"),
    "unknown role": ({"model": "concierge", "messages": [{"role": "cat", "content": ""}]}, 400, "messages.0.role"),
    "picture": (
        {"model": "concierge", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages.0.content",
    ),
    "negative": ({"model": "concierge", "messages": HELLO, "max_tokens": -1}, 400, "max_tokens is -1"),
    "huge": ({"model": "concierge", "messages": HELLO, "seed": 2**70}, 400, "seed is 1180591620717411303424"),
    "n 0": ({"model": "concierge", "messages": HELLO, "n": 0}, 400, "n is 0"),
    "n 9": ({"model": "concierge", "messages": HELLO, "n": 9}, 400, "alternatives is 9; at most 8"),
    "NaN": (b'{"model":"concierge","messages":[{"role":"user","content":"a"}],"temperature":NaN}', 400, "nan"),
    "surrogate": (b'{"model":"concierge","messages":[{"role":"user","content":"\\ud800"}]}', 400, ""),
    "surrogate in a tool": (
        b'{"model":"concierge","messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":'
        b'{"name":"a","parameters":{"description":"\\ud800"}}}]}',
        400,
        "",
    ),
    "too long": ({"model": "concierge", "messages": [{"role": "user", "content": "a " * 4000}]}, 400, "takes 1024"),
    "too large": ({"model": "concierge", "messages": [{"role": "user", "content": "a" * (1 << 20)}]}, 413, "the limit"),
    "usage without a stream": (
        {"model": "concierge", "messages": HELLO, "stream_options": {"include_usage": True}},
        400,
        "needs stream",
    ),
    "two limits": (
        {"model": "concierge", "messages": HELLO, "max_tokens": 1, "max_completion_tokens": 2},
        400,
        "differ",
    ),
    "a policy that is a path": ({"model": "concierge@../../etc", "messages": HELLO}, 400, "a policy id looks like"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_request_is_refused_in_openais_shape(house: House, http: httpx.AsyncClient, case: str) -> None:
    body, status, sentence = BAD[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = await http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert sentence in reply.json()["error"]["message"]
    assert not house.responses()


FEEDBACK: dict[str, tuple[dict[str, object], int]] = {
    "nothing": ({}, 400),
    "no signal": ({"feedback_token": "TOKEN"}, 400),
    "two signals": ({"feedback_token": "TOKEN", "thumb": "up", "rating": 5}, 400),
    "rating 6": ({"feedback_token": "TOKEN", "rating": 6}, 400),
    "rating 0": ({"feedback_token": "TOKEN", "rating": 0}, 400),
    "unknown thumb": ({"feedback_token": "TOKEN", "thumb": "sideways"}, 400),
    "unknown tag": ({"feedback_token": "TOKEN", "thumb": "up", "tags": ["zzz"]}, 400),
    "long comment": ({"feedback_token": "TOKEN", "thumb": "up", "comment": "c" * 4001}, 400),
    "propensity": ({"feedback_token": "TOKEN", "thumb": "up", "propensity": 1.5}, 400),
    "empty correction": ({"feedback_token": "TOKEN", "correction": ""}, 400),
    "backward annotation": ({"feedback_token": "TOKEN", "annotation": {"start": 4, "end": 4}}, 400),
    "outcome name": ({"feedback_token": "TOKEN", "outcome": {"name": "Solved!", "value": True}}, 400),
    "outcome value": ({"feedback_token": "TOKEN", "outcome": {"name": "solved"}}, 400),
    "one is no ranking": ({"ranking": [{"feedback_token": "TOKEN", "rank": 1}]}, 400),
    "ranked twice": (
        {"ranking": [{"feedback_token": "TOKEN", "rank": 1}, {"feedback_token": "TOKEN", "rank": 2}]},
        400,
    ),
    "forged token": ({"feedback_token": "no.token", "thumb": "up"}, 403),
    "reviewer without the role": ({"feedback_token": "TOKEN", "thumb": "up", "author": "reviewer"}, 403),
    "bare id without a key": ({"response_id": "r-1", "thumb": "up"}, 401),
    "conversation thumb": ({"conversation_id": "c", "thumb": "up"}, 401),
}


@pytest.mark.parametrize("case", FEEDBACK)
async def test_bad_feedback_from_a_browser_is_refused(house: House, ai: openai.AsyncOpenAI, case: str) -> None:
    body, status = FEEDBACK[case]
    answer = await ai.chat.completions.create(model="concierge", messages=HELLO, max_tokens=2)
    text = json.dumps(body).replace("TOKEN", answer.model_extra["feedback_token"])
    async with httpx.AsyncClient() as browser:
        reply = await browser.post(
            f"http://127.0.0.1:{house.http_port}/v1/feedback",
            content=text,
            headers={"content-type": "application/json"},
        )
    assert reply.status_code == status, reply.text
    assert not house.thumbs()


async def test_a_ranking_of_alternatives_is_one_feedback(
    house: House, ai: openai.AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    answer = await ai.chat.completions.create(model="concierge", messages=HELLO, n=3, max_tokens=2)
    tokens = [choice.model_extra["feedback_token"] for choice in answer.choices]
    ranks = (2, 1, 2)
    ranking = [{"feedback_token": token, "rank": rank} for token, rank in zip(tokens, ranks, strict=True)]
    assert (await http.post("/v1/feedback", json={"ranking": ranking})).status_code == 200
    (event,) = house.thumbs()
    told = {entry.response_id: entry.rank for entry in event.ranking.entries}
    assert told == {choice.model_extra["response_id"]: rank for choice, rank in zip(answer.choices, ranks, strict=True)}
    assert event.response_id == min(told)
    assert len(event.name) == 32


async def test_responses_to_different_prompts_cannot_be_ranked(ai: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    tokens = []
    for text in ("hello there", "good morning"):
        answer = await ai.chat.completions.create(
            model="concierge", messages=[{"role": "user", "content": text}], max_tokens=2
        )
        tokens.append(answer.model_extra["feedback_token"])
    ranking = [{"feedback_token": token, "rank": 1} for token in tokens]
    reply = await http.post("/v1/feedback", json={"ranking": ranking})
    assert (reply.status_code, "different prompts" in reply.text) == (400, True)


async def test_a_caller_that_goes_away_frees_the_engine(endless_house: House) -> None:
    house = endless_house
    async with client(house) as ai:
        stream = await ai.chat.completions.create(model="concierge", messages=HELLO, max_tokens=900, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await eventually(lambda: house.engine.unfinished == 0)
        waiting = asyncio.create_task(ai.chat.completions.create(model="concierge", messages=HELLO, max_tokens=900))
        await eventually(lambda: house.engine.unfinished == 1)
        waiting.cancel()
        await eventually(lambda: house.engine.unfinished == 0)
    await eventually(lambda: house.chat.admission.running == 0)
    await eventually(lambda: len(house.responses()) == 2)
    assert {event.finish_reason for event in house.responses()} == {event_pb2.FINISH_REASON_ABORTED}


async def test_a_deadline_of_the_callers_own_ends_the_work(endless_house: House) -> None:
    house = endless_house
    async with client(house) as ai:
        with pytest.raises(openai.InternalServerError) as late:
            await ai.chat.completions.create(
                model="concierge", messages=HELLO, max_tokens=900, extra_headers={"attune-timeout-seconds": "0.3"}
            )
    assert late.value.status_code == 504
    await eventually(lambda: house.engine.unfinished == 0)


async def test_health_models_and_the_document_are_there(house: House, http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"status": "alive"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}
    document = (await http.get("/openapi.json")).json()
    assert set(document["paths"]) >= {"/v1/chat/completions", "/v1/feedback", "/v1/models"}
    assert (await http.get("/nothing")).json()["error"]["message"] == "Not Found"
    assert (await http.delete("/v1/models")).status_code == 405


async def test_a_browser_of_an_allowed_page_may_call_and_no_other(http: httpx.AsyncClient) -> None:
    def asks(origin: str) -> dict[str, str]:
        return {"origin": origin, "access-control-request-method": "POST"}

    allowed = await http.options("/v1/feedback", headers=asks("https://app.example.org"))
    assert allowed.headers["access-control-allow-origin"] == "https://app.example.org"
    other = await http.options("/v1/feedback", headers=asks("https://evil.example.org"))
    assert "access-control-allow-origin" not in other.headers
