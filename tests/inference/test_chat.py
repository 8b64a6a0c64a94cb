"""Chat over gRPC: what the caller gets, what the event log gets, and how calls end early."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from attune.chat.template import ChatTemplate
from attune.ids import hash_end_user
from attune.inference.engine import Engine
from attune.v1 import chat_pb2, event_pb2
from tests.inference.house import PERSONAS, House, ask, endless, user
from tests.inference.waiting import eventually
from tests.keyed import metadata


async def test_a_unary_answer_is_in_the_log_before_it_is_given(house: House, template: ChatTemplate) -> None:
    request = ask("What is the capital of France?", temperature=0)
    request.metadata["version"] = "7"
    request.client_request_id = "mine"
    answer = await house.stub.Chat(request, timeout=60)
    (event,) = house.responses()
    (response,) = answer.responses

    assert response.message.content == event.text == "Paris."
    assert response.finish_reason == event.finish_reason == event_pb2.FINISH_REASON_STOP
    assert response.response_id == event.response_id
    assert response.policy_id == event.policy_id == "base"
    assert answer.conversation_id == event.conversation_id != ""
    assert response.usage.prompt_tokens == len(event.prompt_token_ids)
    assert response.usage.output_tokens == len(event.output_token_ids) == len(event.output_logprobs)
    house.keys.signing.check_response_id(response.response_id, "default")

    persona = PERSONAS["concierge"]
    assert list(event.prompt_token_ids) == template.render(persona.system_prompt, request.messages)
    assert event.output_token_ids[-1] in template.end_token_ids
    assert event.messages == request.messages
    assert (event.persona, event.persona_version, event.turn) == ("concierge", persona.version, 1)
    assert event.end_user == hash_end_user("default", "u-1", house.keys.end_user)
    assert event.metadata["version"] == "7"
    assert event.client_request_id == "mine"
    assert (event.source, event.greedy, event.logprobs_mode) == (event_pb2.SOURCE_SERVED, True, "processed_logprobs")
    assert event.consent.store
    assert event.consent.train
    assert event.sampling.max_tokens == 64
    assert 0 < event.timings.first_token_ms <= event.timings.total_ms
    assert event.header.tenant == "default"
    assert event.base_model_hash == house.base_model_hash
    assert event.chat_template_hash == template.hash
    assert event.tokenizer_hash == template.tokenizer_hash


async def test_a_stream_begins_with_ids_and_ends_with_the_acknowledgement(house: House) -> None:
    chunks = await house.stream(ask("What is the capital of France?", persona="tutor", temperature=0))
    (event,) = house.responses()
    first, last = chunks[0], chunks[-1]

    assert first.start.response_id == event.response_id
    assert first.start.policy_id == "base"
    assert first.start.conversation_id == event.conversation_id
    assert not any(chunk.HasField("start") for chunk in chunks[1:])
    assert not any(chunk.HasField("end") for chunk in chunks[:-1])
    assert "".join(chunk.text for chunk in chunks) == event.text
    assert sum(chunk.tokens for chunk in chunks) == len(event.output_token_ids) == last.end.usage.output_tokens
    assert last.end.finish_reason == event_pb2.FINISH_REASON_STOP
    handle = house.keys.signing.read_token(last.end.feedback_token, 0)
    assert (handle.response_id, handle.persona) == (event.response_id, "tutor")
    assert (handle.conversation_id, handle.end_user) == (event.conversation_id, event.end_user)


async def test_logged_logprobs_are_those_of_the_distribution_that_was_drawn_from(house: House) -> None:
    await house.stub.Chat(ask("tell me something", temperature=0.5, seed=3), timeout=60)
    await house.stub.Chat(ask("tell me something", temperature=1.0, seed=3), timeout=60)
    cold, warm = house.responses()
    for event in (cold, warm):
        assert max(event.output_logprobs) <= 0
    plain = await house.engine.score(list(warm.prompt_token_ids), list(warm.output_token_ids), adapter=None)
    assert np.allclose(warm.output_logprobs, plain, atol=0.03)
    plain = await house.engine.score(list(cold.prompt_token_ids), list(cold.output_token_ids), adapter=None)
    # Halving the temperature makes what is likelier than all else together likelier still.
    likely = np.array(plain) > np.log(0.5)
    assert likely.any()
    assert (np.array(cold.output_logprobs)[likely] > np.array(plain)[likely] - 0.03).all()
    assert not np.allclose(cold.output_logprobs, plain, atol=0.03)


async def test_the_same_seed_gives_the_same_answer(house: House) -> None:
    for _ in range(2):
        await house.stub.Chat(ask("tell me a story", temperature=1.5, seed=11), timeout=60)
    one, other = house.responses()
    assert one.output_token_ids == other.output_token_ids
    assert one.sampling.seed == 11


async def test_a_stop_string_ends_the_answer_before_it(house: House) -> None:
    request = ask("What is the capital of France?", persona="tutor", temperature=0)
    whole = (await house.stub.Chat(request, timeout=60)).responses[0].message.content
    word = whole.split()[2]
    request.sampling.stop.append(word)
    chunks = await house.stream(request)
    assert "".join(chunk.text for chunk in chunks) == whole[: whole.index(word)]
    assert chunks[-1].end.finish_reason == event_pb2.FINISH_REASON_STOP


async def test_max_tokens_ends_the_answer_with_length(house: House) -> None:
    answer = await house.stub.Chat(
        ask("What is the capital of France?", persona="tutor", temperature=0, max_tokens=3), timeout=60
    )
    assert answer.responses[0].finish_reason == event_pb2.FINISH_REASON_LENGTH
    assert answer.responses[0].usage.output_tokens == 3


async def test_a_conversation_goes_on_under_its_id(house: House) -> None:
    request = ask("My name is Ada.")
    request.conversation_id = "chat-1"
    first = await house.stub.Chat(request, timeout=60)
    request.messages.append(first.responses[0].message)
    request.messages.extend(user("What is my name?"))
    second = await house.stub.Chat(request, timeout=60)
    assert second.conversation_id == "chat-1"
    assert [event.turn for event in house.responses()] == [1, 2]


async def test_a_leading_system_message_adds_to_the_personas_own(house: House, template: ChatTemplate) -> None:
    request = ask()
    request.messages.insert(0, event_pb2.Message(role=event_pb2.ROLE_SYSTEM, content="Today is Monday."))
    await house.stub.Chat(request, timeout=60)
    (event,) = house.responses()
    text = template.decode(event.prompt_token_ids)
    assert f"{PERSONAS['concierge'].system_prompt}\n\nToday is Monday." in text


async def test_what_a_person_did_not_agree_to_store_is_not_stored(house: House) -> None:
    request = ask()
    request.consent.store = False
    answer = await house.stub.Chat(request, timeout=60)
    chunks = await house.stream(request)
    assert answer.responses[0].message.content
    assert answer.responses[0].feedback_token == ""
    assert chunks[-1].end.feedback_token == ""
    assert house.responses() == []


async def test_what_a_person_did_not_agree_to_train_on_says_so(house: House) -> None:
    request = ask()
    request.consent.train = False
    await house.stub.Chat(request, timeout=60)
    (event,) = house.responses()
    assert event.consent.store
    assert not event.consent.train


async def test_a_cancelled_stream_is_aborted_and_logged_with_what_was_sampled(endless_house: House) -> None:
    house = endless_house
    call = house.stub.StreamChat(ask(max_tokens=900))
    first = await call.read()
    await call.read()
    call.cancel()
    await eventually(house.responses)
    (event,) = house.responses()
    assert event.response_id == first.start.response_id
    assert event.finish_reason == event_pb2.FINISH_REASON_ABORTED
    assert 0 < len(event.output_token_ids) == len(event.output_logprobs) < 900
    await eventually(lambda: house.chat.admission.running == 0)
    assert house.engine.unfinished == 0


@pytest.mark.parametrize("method", ["Chat", "StreamChat"])
async def test_a_passed_deadline_stops_the_engines_work(endless_house: House, method: str) -> None:
    house = endless_house
    call = getattr(house.stub, method)(ask(max_tokens=980), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await (call if method == "Chat" else _drain(call))
    assert refusal.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(house.responses)
    (event,) = house.responses()
    assert event.finish_reason == event_pb2.FINISH_REASON_ABORTED
    assert len(event.output_token_ids) == len(event.output_logprobs) > 0
    assert event.text
    await eventually(lambda: house.engine.unfinished == 0)


async def test_a_caller_that_reads_nothing_is_let_go(
    tmp_path: Path, engine: Engine, template: ChatTemplate, demo_model: Path
) -> None:
    async with House.open(tmp_path, endless(engine), template, demo_model, stall_seconds=0.5) as house:
        # A window of 64 KiB takes some thousand messages; what is read of none of the streams fills it together.
        options = [("grpc.http2.lookahead_bytes", 1), ("grpc.max_receive_message_length", 1 << 20)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{house.port}", options=options) as channel:
            stub = house.stub.__class__(channel)
            calls = [stub.StreamChat(ask(max_tokens=900), metadata=metadata(house.api_key)) for _ in range(8)]
            await eventually(lambda: len(house.responses()) == 8, seconds=60)
            await eventually(lambda: house.chat.admission.running == 0)
            for call in calls:
                call.cancel()


async def test_calls_past_the_limit_are_refused_at_once(
    tmp_path: Path, engine: Engine, template: ChatTemplate, demo_model: Path
) -> None:
    async with House.open(tmp_path, endless(engine), template, demo_model, max_concurrent=2) as house:
        running = [house.stub.StreamChat(ask(max_tokens=900)) for _ in range(2)]
        for call in running:
            await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await house.stub.Chat(ask(), timeout=5)
        assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "this server takes 2 at once" in str(refusal.value.details())
        for call in running:
            call.cancel()
        await eventually(lambda: house.chat.admission.running == 0)
        assert (await house.stub.Chat(ask(), timeout=60)).responses


async def test_a_full_event_log_refuses_new_calls_and_lets_running_ones_finish(
    tmp_path: Path, engine: Engine, template: ChatTemplate, demo_model: Path
) -> None:
    async with House.open(tmp_path, endless(engine), template, demo_model, max_log_bytes=1 << 17) as house:
        running: list[Any] = []
        code = grpc.StatusCode.OK
        while code == grpc.StatusCode.OK:
            call = house.stub.StreamChat(ask(max_tokens=600))
            if isinstance(await _read(call), chat_pb2.ChatChunk):
                running.append(call)
            else:
                code = await call.code()
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert running
        for call in running:
            assert (await _drain(call))[-1].HasField("end")
        assert len(house.responses()) == len(running)
        # The reservation was for the largest record there can be; what was not needed is free again.
        assert (await house.stub.Chat(ask(max_tokens=8), timeout=60)).responses


async def test_streams_past_the_grace_time_are_cut_short_and_logged(
    tmp_path: Path, engine: Engine, template: ChatTemplate, demo_model: Path
) -> None:
    async with House.open(tmp_path, endless(engine), template, demo_model) as house:
        streams = [house.stub.StreamChat(ask(max_tokens=900)) for _ in range(4)]
        for call in streams:
            await call.read()
        answer = asyncio.ensure_future(house.stub.Chat(ask(max_tokens=900)))
        await eventually(lambda: house.chat.admission.running == 5)
        await house.server.close(grace_seconds=0)
        for call in streams:
            with pytest.raises(grpc.aio.AioRpcError):
                await _drain(call)
            assert await call.code() == grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError, match="cut short"):
            await answer
        events = house.responses()
        assert [event.finish_reason for event in events] == [event_pb2.FINISH_REASON_ABORTED] * 5
        assert all(len(event.output_token_ids) == len(event.output_logprobs) < 900 for event in events)
        assert engine.unfinished == 0


async def test_sixty_four_streams_at_once_each_get_their_own_answer(house: House) -> None:
    request = ask("What is the capital of France?", persona="tutor", temperature=0)
    alone = (await house.stub.Chat(request, timeout=60)).responses[0].message.content
    streams = await asyncio.gather(*(house.stream(request) for _ in range(64)))
    for chunks in streams:
        assert "".join(chunk.text for chunk in chunks) == alone
        assert chunks[-1].HasField("end")
    assert len({event.response_id for event in house.responses()}) == 65


async def _drain(call: Any) -> list[chat_pb2.ChatChunk]:
    """What is left of a stream; raises as the call ended."""
    chunks = []
    while isinstance(chunk := await call.read(), chat_pb2.ChatChunk):
        chunks.append(chunk)
    return chunks


async def _read(call: Any) -> Any:
    """The next message, or None where the call has ended."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        return await call.read()
