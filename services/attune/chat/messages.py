"""The messages of a conversation: what may be sent, and their form at rest."""

from collections.abc import Iterable, Mapping, Sequence

from attune.errors import InvalidInput
from attune.v1 import event_pb2

MAX_MESSAGES = 1024

_ROLES = {
    "system": event_pb2.ROLE_SYSTEM,
    "user": event_pb2.ROLE_USER,
    "assistant": event_pb2.ROLE_ASSISTANT,
}
_NAMES = {role: name for name, role in _ROLES.items()}


def check_messages(messages: Sequence[event_pb2.Message]) -> None:
    """Raises InvalidInput unless a policy can answer these: [system] (user | assistant)* user.

    Tool messages are refused until tools can be offered with them. An assistant's message may be empty (a policy may
    have answered nothing); nobody else's may.
    """
    if not messages:
        raise InvalidInput("there are no messages; the last one must be from the user", field="messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidInput(f"there are {len(messages)} messages; at most {MAX_MESSAGES} are taken", field="messages")
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        name = _NAMES.get(message.role)
        if name is None:
            raise InvalidInput(
                f"{field} has the role {_shown(message.role)}; it takes system, user or assistant",
                field=f"{field}.role",
            )
        if name == "system" and index > 0:
            raise InvalidInput(f"{field} is from the system; only the first message may be", field=f"{field}.role")
        if not message.content and name != "assistant":
            raise InvalidInput(f"{field} is empty", field=f"{field}.content")
    if messages[-1].role != event_pb2.ROLE_USER:
        last = len(messages) - 1
        raise InvalidInput(
            f"the last message is from the {_NAMES[messages[-1].role]}; it must be from the user",
            field=f"messages[{last}].role",
        )


def plain_messages(messages: Iterable[event_pb2.Message]) -> list[dict[str, str]]:
    """Messages as rows and files hold them: `{"role": "user", "content": ...}`. They must have been checked."""
    return [{"role": _NAMES[message.role], "content": message.content} for message in messages]


def typed_messages(messages: Iterable[Mapping[str, str]]) -> list[event_pb2.Message]:
    """The inverse of plain_messages; raises InvalidInput for a role that is not known."""
    typed = []
    for index, message in enumerate(messages):
        role = _ROLES.get(message["role"])
        if role is None:
            raise InvalidInput(f"messages[{index}] has an unknown role", field=f"messages[{index}].role")
        typed.append(event_pb2.Message(role=role, content=message["content"]))
    return typed


def count_turns(messages: Iterable[event_pb2.Message]) -> int:
    """How many user messages there are."""
    return sum(message.role == event_pb2.ROLE_USER for message in messages)


def _shown(role: int) -> str:
    return event_pb2.Role.Name(role) if role in event_pb2.Role.values() else str(role)  # type: ignore[arg-type]
