"""Bad input over a real server: a documented status, a sentence with value and limit, nothing written, no harm."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from attune.ids import new_response_id, sign_feedback_token
from attune.v1 import chat_pb2, event_pb2, feedback_pb2
from tests.inference.house import House, ask, user

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NAN, INFINITY = float("nan"), float("inf")


def messages(*pairs: tuple[int, str]) -> chat_pb2.ChatRequest:
    return chat_pb2.ChatRequest(messages=[event_pb2.Message(role=role, content=text) for role, text in pairs])  # type: ignore[arg-type]


def with_fields(**fields: Any) -> chat_pb2.ChatRequest:
    request = ask()
    request.MergeFrom(chat_pb2.ChatRequest(**fields))
    return request


CHAT: dict[str, tuple[chat_pb2.ChatRequest, grpc.StatusCode, str]] = {
    "no messages": (chat_pb2.ChatRequest(), INVALID, "there are no messages"),
    "unknown role": (messages((9, "a")), INVALID, "messages[0] has the role 9"),
    "no role": (messages((0, "a")), INVALID, "messages[0] has the role ROLE_UNSPECIFIED"),
    "tool": (messages((2, "a"), (4, "b"), (2, "c")), INVALID, "messages[1] must have a tool_call_id"),
    "late system": (messages((2, "a"), (1, "b"), (2, "c")), INVALID, "messages[1] is from the system"),
    "last from the assistant": (messages((2, "a"), (3, "b")), INVALID, "the last message is from the assistant"),
    "only a system message": (messages((1, "a")), INVALID, "the last message is from the system"),
    "empty content": (messages((2, "")), INVALID, "messages[0] is empty"),
    "too many messages": (
        chat_pb2.ChatRequest(messages=user(*["a"] * 1025)),
        INVALID,
        "there are 1025 messages; at most 1024",
    ),
    "too long": (ask("word " * 3000), INVALID, "; this model takes 1024"),
    "much too long": (ask("word " * 100_000), INVALID, "; this model takes 1024"),
    "prompt and max_tokens too long": (ask(max_tokens=1020), INVALID, "together this model takes 1024"),
    "max_tokens 0": (ask(max_tokens=0), INVALID, "max_tokens is 0"),
    "max_tokens huge": (ask(max_tokens=2**32 - 1), INVALID, "max_tokens is 4294967295"),
    "temperature low": (ask(temperature=-0.1), INVALID, "temperature is -0.1; it must be 0 to 2"),
    "temperature high": (ask(temperature=2.1), INVALID, "temperature is 2.1; it must be 0 to 2"),
    "temperature NaN": (ask(temperature=NAN), INVALID, "temperature is nan"),
    "temperature infinite": (ask(temperature=INFINITY), INVALID, "temperature is inf"),
    "top_p 0": (ask(top_p=0), INVALID, "top_p is 0"),
    "top_p high": (ask(top_p=1.01), INVALID, "top_p is 1.01"),
    "top_p NaN": (ask(top_p=NAN), INVALID, "top_p is nan"),
    "top_k high": (ask(top_k=1001), INVALID, "top_k is 1001; it must be 0 (all) or 1 to 1000"),
    "presence_penalty": (ask(presence_penalty=2.5), INVALID, "presence_penalty is 2.5; it must be -2 to 2"),
    "presence_penalty NaN": (ask(presence_penalty=NAN), INVALID, "presence_penalty is nan"),
    "frequency_penalty": (ask(frequency_penalty=-INFINITY), INVALID, "frequency_penalty is -inf"),
    "seed": (ask(seed=2**63), INVALID, "seed is 9223372036854775808"),
    "stop count": (ask(stop=list("abcde")), INVALID, "there are 5 stop strings; at most 4"),
    "stop empty": (ask(stop=[""]), INVALID, "stop[0] has 0 characters"),
    "stop long": (ask(stop=["a" * 65]), INVALID, "stop[0] has 65 characters"),
    "unknown persona": (ask(persona="nobody"), grpc.StatusCode.NOT_FOUND, "no such persona"),
    "persona as a path": (ask(persona="../concierge"), grpc.StatusCode.NOT_FOUND, "no such persona"),
    "conversation_id": (with_fields(conversation_id="c" * 129), INVALID, "conversation_id has 129 characters"),
    "client_request_id": (with_fields(client_request_id="c" * 129), INVALID, "client_request_id has 129 characters"),
    "end_user_id": (with_fields(end_user_id="u" * 257), INVALID, "end_user_id has 257 characters"),
    "metadata count": (with_fields(metadata={str(n): "" for n in range(17)}), INVALID, "metadata has 17 entries"),
    "metadata key": (with_fields(metadata={"k" * 65: ""}), INVALID, "a key of metadata has 65 characters"),
    "metadata value": (with_fields(metadata={"k": "v" * 257}), INVALID, "a value of metadata has 257 characters"),
}


@pytest.mark.parametrize("method", ["Chat", "StreamChat"])
@pytest.mark.parametrize("case", CHAT)
async def test_a_bad_chat_request_is_refused(house: House, case: str, method: str) -> None:
    request, code, sentence = CHAT[case]
    error = await refusal(
        house, f"/attune.v1.ChatService/{method}", request.SerializeToString(), method == "StreamChat"
    )
    details = error.details() or ""
    assert (error.code(), sentence in details) == (code, True), details
    assert len(details) < 500
    await unharmed(house)


@pytest.mark.parametrize("method", ["ChatService/Chat", "ChatService/StreamChat", "FeedbackService/SubmitFeedback"])
@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff", b"\x0a\xff", b"\x0a\x03\xff\xfe\xfd", b"\x12\x04\x12\x02\xc3\x28", b"\x1a\x05hello\x07" * 3],
    ids=["tags", "cut", "not UTF-8", "not UTF-8 within", "wire types"],
)
async def test_bytes_that_are_no_message_are_refused(house: House, method: str, data: bytes) -> None:
    error = await refusal(house, f"/attune.v1.{method}", data, method.endswith("StreamChat"))
    assert error.code() == INVALID
    await unharmed(house)


async def test_a_message_larger_than_the_limit_is_refused(house: House) -> None:
    error = await refusal(house, "/attune.v1.ChatService/Chat", ask("a" * (1 << 20)).SerializeToString(), False)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    await unharmed(house)


async def test_a_refusal_says_by_machine_which_field_it_is(house: House) -> None:
    error = await refusal(house, "/attune.v1.ChatService/Chat", ask(top_k=1001).SerializeToString(), False)
    packed = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    details = status_pb2.Status.FromString(packed).details
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in details)
    assert bad.field_violations[0].field == "sampling.top_k"


def token(house: House, **fields: Any) -> str:
    (key,) = house.keys.signing.all()
    handle = feedback_pb2.FeedbackHandle(
        tenant="default", response_id="r", expires_unix_seconds=2**40, key_id=key.key_id
    )
    handle.MergeFrom(feedback_pb2.FeedbackHandle(**fields))
    return sign_feedback_token(handle, key.feedback_token)


def flipped(text: str, at: int) -> str:
    return f"{text[:at]}{'A' if text[at] != 'A' else 'B'}{text[at + 1 :]}"


def foreign(tenant: str, key: bytes) -> str:
    return new_response_id(tenant, key)


DENIED, NOT_FOUND = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND
UP = event_pb2.THUMB_UP
FEEDBACK: dict[str, tuple[Callable[[House], dict[str, Any]], grpc.StatusCode]] = {
    "nothing": (lambda house: {}, INVALID),
    "no subject": (lambda house: {"thumb": UP}, INVALID),
    "no thumb": (lambda house: {"feedback_token": token(house)}, INVALID),
    "unknown thumb": (lambda house: {"feedback_token": token(house), "thumb": 7}, INVALID),
    "long comment": (lambda house: {"feedback_token": token(house), "thumb": UP, "comment": "c" * 4001}, INVALID),
    "whose with a token": (lambda house: {"feedback_token": token(house), "thumb": UP, "end_user_id": "u"}, INVALID),
    "garbage token": (lambda house: {"feedback_token": "no.token", "thumb": UP}, DENIED),
    "huge token": (lambda house: {"feedback_token": "a" * 100_000, "thumb": UP}, DENIED),
    "changed payload": (lambda house: {"feedback_token": flipped(token(house), 5), "thumb": UP}, DENIED),
    "changed signature": (lambda house: {"feedback_token": flipped(token(house), -9), "thumb": UP}, DENIED),
    "unknown key": (lambda house: {"feedback_token": token(house, key_id="k9"), "thumb": UP}, DENIED),
    "expired": (lambda house: {"feedback_token": token(house, expires_unix_seconds=1), "thumb": UP}, DENIED),
    "garbage id": (lambda house: {"response_id": "r-1", "thumb": UP}, NOT_FOUND),
    "huge id": (lambda house: {"response_id": "r" * 100_000, "thumb": UP}, NOT_FOUND),
    "forged id": (lambda house: {"response_id": foreign("default", b"k" * 32), "thumb": UP}, NOT_FOUND),
    "another tenant's": (
        lambda house: {"response_id": house.keys.signing.new_response_id("other"), "thumb": UP},
        NOT_FOUND,
    ),
    "long user": (
        lambda house: {
            "response_id": house.keys.signing.new_response_id("default"),
            "thumb": UP,
            "end_user_id": "u" * 257,
        },
        INVALID,
    ),
}


@pytest.mark.parametrize("case", FEEDBACK)
async def test_bad_feedback_is_refused(house: House, case: str) -> None:
    build, code = FEEDBACK[case]
    request = feedback_pb2.SubmitFeedbackRequest(**build(house))
    error = await refusal(house, "/attune.v1.FeedbackService/SubmitFeedback", request.SerializeToString(), False)
    assert error.code() == code, error.details()
    await unharmed(house)


async def refusal(house: House, method: str, data: bytes, streaming: bool) -> grpc.aio.AioRpcError:
    call: Any = house.channel.unary_stream(method) if streaming else house.channel.unary_unary(method)
    running = call(data, timeout=30)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await (running.read() if streaming else running)
    return refused.value


async def unharmed(house: House) -> None:
    """Nothing was written, nothing is held, and the next call is answered."""
    assert house.responses() == []
    assert house.thumbs() == []
    assert house.chat.admission.running == 0
    assert house.engine.unfinished == 0
    request = ask(max_tokens=1)
    request.consent.store = False
    assert (await house.stub.Chat(request, timeout=30)).responses
