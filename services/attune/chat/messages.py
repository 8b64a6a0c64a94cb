"""The messages of a conversation: what may be sent, and their form at rest."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attune.chat.words import ROLES
from attune.errors import InvalidInput
from attune.v1 import event_pb2

MAX_MESSAGES = 1024
MAX_CALLS = 32
MAX_CALL_ID_CHARACTERS = 128
MAX_NAME_CHARACTERS = 64
MAX_ARGUMENTS_CHARACTERS = 32_768


def check_messages(messages: Sequence[event_pb2.Message]) -> None:
    """Raises InvalidInput unless a policy can answer these: [system] (user | assistant | tool)* (user | tool).

    A tool's message answers a call that the assistant's message before it made. An assistant's message may be empty (a
    policy may have answered nothing, or only called), and so may a tool's result; nobody else's may.
    """
    if not messages:
        raise InvalidInput("there are no messages; the last one must be from the user", field="messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidInput(f"there are {len(messages)} messages; at most {MAX_MESSAGES} are taken", field="messages")
    callable_ids: set[str] = set()
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        name = ROLES.of.get(message.role)
        if name is None:
            raise InvalidInput(
                f"{field} has the role {_shown(message.role)}; it takes system, user, assistant or tool",
                field=f"{field}.role",
            )
        if name == "system" and index > 0:
            raise InvalidInput(f"{field} is from the system; only the first message may be", field=f"{field}.role")
        if not message.content and name in ("system", "user"):
            raise InvalidInput(f"{field} is empty", field=f"{field}.content")
        if name != "assistant" and (message.tool_calls or message.reasoning):
            raise InvalidInput(
                f"{field} has tool calls or reasoning; only the assistant's may", field=f"{field}.tool_calls"
            )
        if (name == "tool") != bool(message.tool_call_id):
            raise InvalidInput(
                f"{field} must have a tool_call_id if it is from a tool, and only then", field=f"{field}.tool_call_id"
            )
        if name == "tool":
            if message.tool_call_id not in callable_ids:
                raise InvalidInput(
                    f"{field} answers no call of the assistant's message before it", field=f"{field}.tool_call_id"
                )
            callable_ids.remove(message.tool_call_id)
        else:
            callable_ids = _check_calls(message.tool_calls, field)
    if messages[-1].role not in (event_pb2.ROLE_USER, event_pb2.ROLE_TOOL):
        last = len(messages) - 1
        raise InvalidInput(
            f"the last message is from the {ROLES.of[messages[-1].role]}; it must be from the user or a tool",
            field=f"messages[{last}].role",
        )


def _check_calls(calls: Sequence[event_pb2.ToolCall], field: str) -> set[str]:
    """The ids of a message's calls; raises InvalidInput for what no tool message could answer."""
    if len(calls) > MAX_CALLS:
        raise InvalidInput(
            f"{field} has {len(calls)} calls; at most {MAX_CALLS} are taken", field=f"{field}.tool_calls"
        )
    ids: set[str] = set()
    for number, call in enumerate(calls):
        where = f"{field}.tool_calls[{number}]"
        if not 1 <= len(call.id) <= MAX_CALL_ID_CHARACTERS or call.id in ids:
            raise InvalidInput(
                f"{where}.id must have 1 to {MAX_CALL_ID_CHARACTERS} characters and be used once", field=f"{where}.id"
            )
        if not 1 <= len(call.name) <= MAX_NAME_CHARACTERS:
            raise InvalidInput(f"{where}.name must have 1 to {MAX_NAME_CHARACTERS} characters", field=f"{where}.name")
        if len(call.arguments_json) > MAX_ARGUMENTS_CHARACTERS:
            raise InvalidInput(
                f"{where}.arguments_json has {len(call.arguments_json)} characters; at most "
                f"{MAX_ARGUMENTS_CHARACTERS} are taken",
                field=f"{where}.arguments_json",
            )
        ids.add(call.id)
    return ids


def plain_messages(messages: Iterable[event_pb2.Message]) -> list[dict[str, Any]]:
    """Messages as chat templates and files have them: `{"role": "user", "content": ...}`. They must have been checked.

    Calls are in OpenAI's form, with arguments as an object where they are one, for that is what templates expect.
    """
    return [_plain(message) for message in messages]


def _plain(message: event_pb2.Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": ROLES.of[message.role], "content": message.content}
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments_json)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.reasoning:
        plain["reasoning_content"] = message.reasoning
    return plain


def _arguments(text: str) -> Any:
    """The arguments as an object; what the model wrote and is none stays text."""
    try:
        arguments = json.loads(text)
        json.dumps(arguments, ensure_ascii=False).encode()  # an escape may stand for half a character
    except (ValueError, RecursionError):
        return text
    return arguments if isinstance(arguments, dict) else text


def typed_messages(messages: Iterable[Mapping[str, Any]]) -> list[event_pb2.Message]:
    """The inverse of plain_messages; raises InvalidInput for a role that is not known."""
    typed = []
    for index, message in enumerate(messages):
        role = ROLES.get(message["role"])
        if role is None:
            raise InvalidInput(f"messages[{index}] has an unknown role", field=f"messages[{index}].role")
        calls = []
        for call in message.get("tool_calls") or ():
            arguments = call["function"]["arguments"]
            calls.append(
                event_pb2.ToolCall(
                    id=call["id"],
                    name=call["function"]["name"],
                    arguments_json=arguments if isinstance(arguments, str) else json.dumps(arguments),
                )
            )
        typed.append(
            event_pb2.Message(
                role=role,
                content=message["content"],
                tool_calls=calls,
                tool_call_id=message.get("tool_call_id", ""),
                reasoning=message.get("reasoning_content", ""),
            )
        )
    return typed


def count_turns(messages: Iterable[event_pb2.Message]) -> int:
    """How many user messages there are."""
    return sum(message.role == event_pb2.ROLE_USER for message in messages)


def _shown(role: int) -> str:
    return event_pb2.Role.Name(role) if role in event_pb2.Role.values() else str(role)  # type: ignore[arg-type]
