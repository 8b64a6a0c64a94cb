"""Writes docs/api.md from the protos' comments, the table of who may call what, and the OpenAPI document.

`make proto` runs it; `make check` fails when the page is not what it writes.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from attune.access import RULES
from attune.errors import STATUS
from attune.inference.http.openapi import openapi

_PROTOS = Path(__file__).parents[1] / "protos"
_PACKAGE = "attune.v1"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in _Field.Type.items()}
# Where in a file's descriptor its parts stand: field numbers of descriptor.proto.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _NESTED, _NESTED_ENUMS, _VALUES, _METHODS = 2, 3, 4, 2, 2

_INTRODUCTION = """# API reference

Generated from `protos/attune/v1` and the OpenAPI document by `make proto`; not edited by hand. How to use it:
[recipes](recipes.md). A running server tells the same: gRPC by reflection, HTTP at `/openapi.json`.
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("out", type=Path)
    arguments.parse_args().out.write_text(reference(), encoding="utf-8")


def reference() -> str:
    files = [file for file in _descriptors().file if file.package == _PACKAGE]
    sections = [_INTRODUCTION, _statuses()]
    sections += ["## gRPC\n", *(section for file in files for section in _services(file))]
    sections += ["## Messages\n", *(section for file in files for section in _messages(file))]
    sections += ["## HTTP\n", *_http(openapi())]
    return "\n".join(sections)


def _descriptors() -> descriptor_pb2.FileDescriptorSet:
    with tempfile.NamedTemporaryFile() as out:
        command = ["protoc", f"--proto_path={_PROTOS}", "--include_source_info", f"--descriptor_set_out={out.name}"]
        if protoc.main([*command, *map(str, sorted(_PROTOS.glob("attune/v1/*.proto")))]):
            raise SystemExit("the protos cannot be read")
        return descriptor_pb2.FileDescriptorSet.FromString(Path(out.name).read_bytes())


def _statuses() -> str:
    rows = sorted({(status.grpc, str(status.http)) for status in STATUS.values()})
    return "## Statuses\n\nEvery refusal has one of these, with a sentence.\n\n" + _table(("gRPC", "HTTP"), rows)


class _Comments:
    """The comments of one file's parts, by the path of each in the file's descriptor."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._of = {
            tuple(location.path): location.leading_comments or location.trailing_comments
            for location in file.source_code_info.location
        }

    def of(self, *path: int) -> str:
        return " ".join(self._of.get(path, "").split())


def _services(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    comments = _Comments(file)
    for number, service in enumerate(file.service):
        yield f"### {service.name}\n\n{comments.of(_SERVICES, number)}\n".replace("\n\n\n", "\n")
        rows = []
        for index, method in enumerate(service.method):
            takes = f"{'stream ' * method.client_streaming}{_link(method.input_type)}"
            gives = f"{'stream ' * method.server_streaming}{_link(method.output_type)}"
            what = comments.of(_SERVICES, number, _METHODS, index)
            rows.append((f"`{method.name}`", takes, gives, _who(f"{_PACKAGE}.{service.name}/{method.name}"), what))
        yield _table(("call", "takes", "gives", "with a key of the role", "what"), rows)


def _who(method: str) -> str:
    rule = RULES[method]
    return "anybody; a feedback token or key where it says so" if rule.open else " or ".join(rule.roles)


def _messages(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    comments = _Comments(file)
    for number, message in enumerate(file.message_type):
        yield from _message(message, message.name, comments, (_MESSAGES, number))
    for number, enum in enumerate(file.enum_type):
        yield _enum(enum, enum.name, comments, (_ENUMS, number))


def _message(
    message: descriptor_pb2.DescriptorProto, name: str, comments: _Comments, path: tuple[int, ...]
) -> Iterator[str]:
    maps = {f".{_PACKAGE}.{name}.{nested.name}": nested for nested in message.nested_type if nested.options.map_entry}
    rows = []
    for index, field in enumerate(message.field):
        kind = _type(field)
        if field.type_name in maps:
            kind = "map of " + " to ".join(_type(entry) for entry in maps[field.type_name].field)
        elif field.label == _Field.LABEL_REPEATED:
            kind = f"repeated {kind}"
        if field.HasField("oneof_index") and not field.proto3_optional:
            kind += f", one of `{message.oneof_decl[field.oneof_index].name}`"
        elif field.proto3_optional:
            kind = f"optional {kind}"
        rows.append((f"`{field.name}`", str(field.number), kind, comments.of(*path, _FIELDS, index)))
    yield f"### {name}\n\n{comments.of(*path)}\n".replace("\n\n\n", "\n")
    if rows:
        yield _table(("field", "number", "type", "what"), rows)
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _message(nested, f"{name}.{nested.name}", comments, (*path, _NESTED, index))
    for index, enum in enumerate(message.enum_type):
        yield _enum(enum, f"{name}.{enum.name}", comments, (*path, _NESTED_ENUMS, index))


def _enum(enum: descriptor_pb2.EnumDescriptorProto, name: str, comments: _Comments, path: tuple[int, ...]) -> str:
    rows = [
        (f"`{value.name}`", str(value.number), comments.of(*path, _VALUES, index))
        for index, value in enumerate(enum.value)
    ]
    return f"### {name}\n\n{comments.of(*path)}\n\n".replace("\n\n\n\n", "\n\n") + _table(
        ("value", "number", "what"), rows
    )


def _type(field: descriptor_pb2.FieldDescriptorProto) -> str:
    return _link(field.type_name) if field.type_name else _SCALARS[field.type]


def _link(type_name: str) -> str:
    name = type_name.removeprefix(f".{_PACKAGE}.")
    return f"[{name}](#{name.lower().replace('.', '')})"


def _http(document: dict[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for verb, operation in methods.items():
            route = f"{verb.upper()} {path}"
            yield f"### {route}\n\n{operation['summary']} Key: {_who(route)}.\n"
            if parameters := operation.get("parameters"):
                rows = [
                    (f"`{each['name']}`", each["in"], _schema(each["schema"]), each.get("description", ""))
                    for each in parameters
                ]
                yield _table(("parameter", "in", "type", "what"), rows)
            if body := operation.get("requestBody"):
                yield f"Body: {_schema(body['content']['application/json']['schema'])}.\n"
            answer = operation["responses"]["200"]["content"]
            forms = ", ".join(f"`{form}`" for form in answer)
            refusals = ", ".join(status for status in operation["responses"] if status != "200")
            yield f"Answer: {_schema(answer['application/json']['schema'])} as {forms}. Refusals: {refusals}.\n"
    for name, schema in document["components"]["schemas"].items():
        yield f"### HTTP {name}\n\n{' '.join(schema.get('description', '').split())}\n".replace("\n\n\n", "\n")
        required = schema.get("required", ())
        rows = [
            (f"`{field}`", _schema(each), "yes" if field in required else "", each.get("description", ""))
            for field, each in schema.get("properties", {}).items()
        ]
        if rows:
            yield _table(("field", "type", "required", "what"), rows)


_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}


def _schema(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#http-{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if parts := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_schema(part) for part in parts)
    kind = schema.get("type", "anything")
    words = " or ".join(kind) if isinstance(kind, list) else kind
    if kind == "array" and "items" in schema:
        words = f"array of {_schema(schema['items'])}"
    return ", ".join([words, *(text.format(schema[limit]) for limit, text in _LIMITS.items() if limit in schema)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
