"""Tools that a request offers, and how the model is to use them."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attune.chat.schemas import read_schema
from attune.errors import InvalidInput
from attune.v1 import event_pb2

MAX_TOOLS = 32
MAX_DESCRIPTION_CHARACTERS = 1024
MAX_SCHEMA_BYTES = 8192

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_ARGUMENTS = {"type": "object", "properties": {}}


def offered_tools(
    persona: Sequence[event_pb2.Tool], asked: Sequence[event_pb2.Tool], choice: event_pb2.ToolChoice
) -> tuple[event_pb2.Tool, ...]:
    """The tools that the model is shown: the persona's, then the request's; none with MODE_NONE.

    Raises InvalidInput for a tool that cannot be offered, one with the name of a persona's tool included, and for a
    choice that cannot be followed.
    """
    check_tools(asked, {tool.name for tool in persona})
    tools = (*persona, *asked)
    match choice.mode:
        case event_pb2.ToolChoice.MODE_UNSPECIFIED | event_pb2.ToolChoice.MODE_AUTO:
            return tools
        case event_pb2.ToolChoice.MODE_NONE:
            return ()
        case event_pb2.ToolChoice.MODE_REQUIRED:
            if not tools:
                raise InvalidInput("tool_choice asks for a call, and there are no tools", field="tool_choice")
            return tools
        case event_pb2.ToolChoice.MODE_NAMED:
            if all(tool.name != choice.name for tool in tools):
                raise InvalidInput("tool_choice names a tool that is not offered", field="tool_choice.name")
            return tools
    raise InvalidInput(
        f"tool_choice.mode is {choice.mode}; it must be MODE_AUTO (1), MODE_NONE (2), MODE_REQUIRED (3) or "
        "MODE_NAMED (4)",
        field="tool_choice.mode",
    )


def tool_parameters(tool: event_pb2.Tool) -> dict[str, Any]:
    """The JSON schema of a checked tool's arguments."""
    parameters: dict[str, Any] = json.loads(tool.parameters_json) if tool.parameters_json else dict(_NO_ARGUMENTS)
    return parameters


def function_tools(tools: Sequence[event_pb2.Tool]) -> list[dict[str, Any]]:
    """Tools as chat templates and OpenAI's API have them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool_parameters(tool),
            },
        }
        for tool in tools
    ]


def typed_tools(tools: Iterable[Mapping[str, Any]]) -> list[event_pb2.Tool]:
    """The inverse of function_tools."""
    functions = [tool["function"] for tool in tools]
    return [
        event_pb2.Tool(
            name=function["name"],
            description=function.get("description") or "",
            parameters_json=json.dumps(function["parameters"]) if function.get("parameters") else "",
        )
        for function in functions
    ]


def check_tools(tools: Sequence[event_pb2.Tool], taken: set[str]) -> None:
    """Raises InvalidInput for what cannot be offered; names that are taken already are added to."""
    if len(tools) > MAX_TOOLS:
        raise InvalidInput(f"there are {len(tools)} tools; at most {MAX_TOOLS} are taken", field="tools")
    for index, tool in enumerate(tools):
        field = f"tools[{index}]"
        if not _NAME.fullmatch(tool.name):
            raise InvalidInput(
                f"{field}.name must be 1 to 64 letters, digits, underscores and dashes", field=f"{field}.name"
            )
        if tool.name in taken:
            raise InvalidInput(f"{field} has the name of another tool", field=f"{field}.name")
        taken.add(tool.name)
        if len(tool.description) > MAX_DESCRIPTION_CHARACTERS:
            raise InvalidInput(
                f"{field}.description has {len(tool.description)} characters; at most {MAX_DESCRIPTION_CHARACTERS} "
                "are taken",
                field=f"{field}.description",
            )
        if tool.parameters_json:
            schema = read_schema(tool.parameters_json, f"{field}.parameters_json", max_bytes=MAX_SCHEMA_BYTES)
            if schema.get("type", "object") != "object":
                raise InvalidInput(f"{field}.parameters_json must describe an object", field=f"{field}.parameters_json")
