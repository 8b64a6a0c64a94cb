"""Personas in a running service: new ones and changed ones, their limits and their tools."""

from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import pytest

from attune.access import Role
from attune.chat.template import ChatTemplate
from attune.errors import NotFound
from attune.v1 import chat_pb2_grpc, event_pb2, feedback_pb2
from tests.inference.house import House, ask
from tests.inference.waiting import eventually
from tests.keyed import keyed_channel
from tests.persona_files import apply

GUIDE = """
system_prompt = "You are a guide."
guidelines = "Be kind."
feedback_tags = ["dull"]

[sampling]
temperature = 0.5
max_tokens = 16

[limits]
max_tokens = 120
max_temperature = 1.0

[[tools]]
name = "call_cab"
description = "Calls a cab."
parameters.required = ["to"]
parameters.properties.to.enum = ["home"]
"""
MUSEUM = event_pb2.Tool(name="open_hours", parameters_json='{"type": "object", "properties": {}}')


async def seen(house: House, name: str = "guide") -> None:
    """Until the service has noticed what was applied."""

    def there() -> bool:
        try:
            return bool(house.personas.find("default", name))
        except NotFound:
            return False

    await eventually(there, seconds=10)


async def refusal(house: House, **sampling: object) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.stub.Chat(ask(persona="guide", **sampling), timeout=60)
    return caught.value.code().name, caught.value.details() or ""


def http(house: House) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{house.http_port}",
        headers={"authorization": f"Bearer {house.api_key}"},
        timeout=60,
        trust_env=False,
    )


async def test_a_new_persona_answers_with_its_prompt_sampling_and_version(house: House, template: ChatTemplate) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.stub.Chat(ask(persona="guide"), timeout=60)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    persona = apply(house.folder, "guide", GUIDE)
    await seen(house)
    request = ask(persona="guide")
    answer = await house.stub.Chat(request, timeout=60)
    (event,) = house.responses()
    assert (event.persona, event.persona_version, event.policy_id) == ("guide", persona.version, "base")
    assert (event.sampling.temperature, event.sampling.max_tokens) == (0.5, 16)
    assert list(event.prompt_token_ids) == template.render("You are a guide.", request.messages, persona.offered_tools)

    async with http(house) as web:
        models = (await web.get("/v1/models")).json()["data"]
        assert [model["id"] for model in models] == [
            *("concierge", "concierge@base", "guide", "guide@base", "tutor", "tutor@base")
        ]
        guide = (await web.get("/v1/models/guide")).json()
    assert (guide["persona_version"], guide["guideline_version"]) == (persona.version, persona.guideline_version)
    assert guide["feedback_tags"] == ["dull"]

    token = answer.responses[0].feedback_token
    vote = feedback_pb2.SubmitFeedbackRequest(feedback_token=token, thumb=event_pb2.THUMB_DOWN, tags=["dull"])
    await house.feedback.SubmitFeedback(vote, timeout=60)
    vote.tags[:] = ["wrong"]
    with pytest.raises(grpc.aio.AioRpcError, match=r"tags\[0\] is not in the vocabulary: dull"):
        await house.feedback.SubmitFeedback(vote, timeout=60)


async def test_a_changed_persona_answers_otherwise_from_then_on(house: House) -> None:
    before = await house.stub.Chat(ask(max_tokens=1), timeout=60)
    persona = apply(house.folder, "concierge", 'system_prompt = "You are somebody else."')
    await eventually(lambda: house.personas.find("default", "").version == persona.version, seconds=10)
    await house.stub.Chat(ask(max_tokens=1), timeout=60)
    first, second = house.responses()
    assert first.response_id == before.responses[0].response_id
    assert first.persona_version != second.persona_version == persona.version


async def test_a_request_beyond_a_personas_limits_is_refused_over_grpc_and_http(house: House) -> None:
    apply(house.folder, "guide", GUIDE)
    await seen(house)
    assert await refusal(house, max_tokens=121) == (
        "INVALID_ARGUMENT",
        "max_tokens is 121; this persona's limit is 120",
    )
    assert await refusal(house, temperature=1.5) == (
        "INVALID_ARGUMENT",
        "temperature is 1.5; this persona's limits are 0 to 1",
    )
    body = {"model": "guide", "messages": [{"role": "user", "content": "hi"}]}
    async with http(house) as web:
        for field, value in (("max_tokens", 121), ("temperature", 1.5)):
            refused = await web.post("/v1/chat/completions", json=body | {field: value})
            assert refused.status_code == 400
            assert "this persona's limit" in refused.json()["error"]["message"]
        allowed = await web.post("/v1/chat/completions", json=body | {"max_tokens": 120, "temperature": 1})
        assert allowed.status_code == 200
    assert len(house.responses()) == 1


async def test_a_personas_tools_are_offered_and_a_requests_own_come_behind_them(
    house: House, template: ChatTemplate
) -> None:
    persona = apply(house.folder, "guide", GUIDE)
    await seen(house)
    alone, both, none = (ask(persona="guide", max_tokens=2) for _ in range(3))
    both.tools.append(MUSEUM)
    none.tool_choice.mode = event_pb2.ToolChoice.MODE_NONE
    for request in (alone, both, none):
        await house.stub.Chat(request, timeout=60)
    events = house.responses()
    assert [[tool.name for tool in event.tools] for event in events] == [["call_cab"], ["call_cab", "open_hours"], []]
    assert list(events[1].prompt_token_ids) == template.render(
        persona.system_prompt, both.messages, [*persona.offered_tools, MUSEUM]
    )

    forced = ask(persona="guide", max_tokens=120, temperature=0)
    forced.tool_choice.mode, forced.tool_choice.name = event_pb2.ToolChoice.MODE_NAMED, "call_cab"
    (call,) = (await house.stub.Chat(forced, timeout=60)).responses[0].message.tool_calls
    assert call.name == "call_cab"

    clash = ask(persona="guide")
    clash.tools.append(event_pb2.Tool(name="call_cab"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.stub.Chat(clash, timeout=60)
    assert (caught.value.code().name, caught.value.details()) == (
        "INVALID_ARGUMENT",
        "tools[0] has the name of another tool",
    )


async def test_a_new_personas_policy_is_put_in_service_beside_one_of_the_same_name(
    house: House, adapter: Callable[[int], Path]
) -> None:
    apply(house.folder, "guide", GUIDE)
    apply(house.folder, "guide", GUIDE, tenant="acme")
    await seen(house)
    policy_id = await house.publish(adapter(1), persona="guide")
    house.roll_out((policy_id, 1.0), persona="guide")
    await house.policies.refresh()
    answer = await house.stub.Chat(ask(persona="guide", max_tokens=1), timeout=60)
    assert answer.responses[0].policy_id == policy_id

    key = house.access.create("acme", [Role.CHAT])
    async with keyed_channel(f"127.0.0.1:{house.port}", key) as channel:
        theirs = await chat_pb2_grpc.ChatServiceStub(channel).Chat(ask(persona="guide", max_tokens=1), timeout=60)
    assert theirs.responses[0].policy_id == "base"
    assert {(event.header.tenant, event.policy_id) for event in house.responses()} == {
        ("default", policy_id),
        ("acme", "base"),
    }
