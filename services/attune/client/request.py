"""From what an application says to the message on the wire."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeVar
from uuid import uuid4

from attune.chat.words import ROLES
from attune.errors import InvalidInput
from attune.v1 import chat_pb2, event_pb2, feedback_pb2

Messages = str | Sequence[Mapping[str, Any]]
"""One user message, or the conversation so far as `{"role": ..., "content": ...}`, the last one the user's or a tool's.

An assistant's message may have `tool_calls` (a response's own), a tool's has the `tool_call_id` that it answers.
"""


class SamplingFields(TypedDict, total=False):
    """How tokens are drawn; what is absent is the persona's default. Ranges are checked by the server."""

    temperature: float
    top_p: float
    top_k: int
    presence_penalty: float
    frequency_penalty: float
    max_tokens: int
    seed: int
    stop: Sequence[str]


class RequestFields(SamplingFields, total=False):
    """Everything that a chat call takes beside the messages."""

    persona: str
    conversation_id: str
    end_user_id: str
    client_request_id: str
    metadata: Mapping[str, str]
    may_store: bool
    may_train: bool
    alternatives: int
    tools: Sequence[Mapping[str, Any]]
    policy_id: str


def chat_request(messages: Messages, fields: RequestFields) -> chat_pb2.ChatRequest:
    """Raises InvalidInput for what does not fit into a message at all; the server judges the rest."""
    given = dict(fields)
    consent = event_pb2.Consent(store=given.pop("may_store", None), train=given.pop("may_train", None))  # type: ignore[arg-type]
    sampling = {name: given.pop(name) for name in SamplingFields.__annotations__ if name in given}
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    try:
        return chat_pb2.ChatRequest(
            messages=[_message(turn) for turn in turns],
            sampling=event_pb2.Sampling(**sampling),  # type: ignore[arg-type]
            consent=consent,
            tools=[_tool(tool) for tool in given.pop("tools", ())],  # type: ignore[attr-defined]
            **given,  # type: ignore[arg-type]
        )
    except KeyError as error:
        raise InvalidInput(f"a message has no {error.args[0]}", field="messages") from None
    except (TypeError, ValueError, UnicodeError) as error:
        raise InvalidInput(f"the request does not fit: {error}") from None


_Request = TypeVar("_Request", chat_pb2.ChatRequest, feedback_pb2.SubmitFeedbackRequest)


def identified(request: _Request) -> _Request:
    """The request with an id of the client's own, made where it has none: sent twice, it does the same once."""
    if isinstance(request, chat_pb2.ChatRequest):
        if not request.client_request_id:
            request.client_request_id = uuid4().hex
        return request
    named = feedback_pb2.SubmitFeedbackRequest()
    named.CopyFrom(request)  # it is the caller's own, who may send it again as another one
    named.client_feedback_id = request.client_feedback_id or uuid4().hex
    return named


def signal_request(feedback_token: str, **signal: Any) -> feedback_pb2.SubmitFeedbackRequest:
    """Raises InvalidInput for a response that came without a token: its consent to be stored was denied."""
    if not feedback_token:
        raise InvalidInput("this response takes no feedback: it was not stored", field="feedback_token")
    try:
        return feedback_pb2.SubmitFeedbackRequest(feedback_token=feedback_token, **signal)
    except (TypeError, ValueError, UnicodeError) as error:
        raise InvalidInput(f"the feedback does not fit: {error}") from None


def ranking_request(ranks: Sequence[Sequence[str]]) -> feedback_pb2.SubmitFeedbackRequest:
    """Of feedback tokens, best first; those in one group are tied."""
    entries = [
        feedback_pb2.RankingRequest.Entry(feedback_token=token, rank=rank)
        for rank, group in enumerate(ranks, start=1)
        for token in group
    ]
    return feedback_pb2.SubmitFeedbackRequest(ranking=feedback_pb2.RankingRequest(entries=entries))


def _message(turn: Mapping[str, Any]) -> event_pb2.Message:
    return event_pb2.Message(
        role=_role(turn["role"]),
        content=(turn.get("content") if turn.get("tool_calls") else turn["content"]) or "",
        tool_calls=[
            event_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json)
            for call in turn.get("tool_calls", ())
        ],
        tool_call_id=turn.get("tool_call_id", ""),
    )


def _tool(tool: Mapping[str, Any]) -> event_pb2.Tool:
    parameters = tool.get("parameters")
    return event_pb2.Tool(
        name=tool["name"],
        description=tool.get("description", ""),
        parameters_json="" if parameters is None else json.dumps(parameters),
    )


def _role(name: str) -> "event_pb2.Role.ValueType":
    if name not in ROLES:
        raise InvalidInput(f"a message's role is one of {', '.join(ROLES)}", field="messages")
    return ROLES[name]
