"""JSON schemas that strangers send: read within bounds, for a grammar is made of them."""

import json
from typing import Any, NoReturn

from attune.errors import InvalidInput

MAX_BYTES = 16_384
MAX_DEPTH = 16
MAX_NODES = 1_000
MAX_ENUM = 256
MAX_REPEATS = 256

# Each can make a grammar of any size or a match of any length.
_REFUSED = ("pattern", "patternProperties", "propertyNames", "$dynamicRef", "$recursiveRef", "unevaluatedProperties")
_REPEATS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_DEFINITIONS = ("$defs", "definitions")


def read_schema(text: str, field: str, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The schema, with references to its own definitions put in place; raises InvalidInput that names the bound."""
    size = len(text.encode())
    if size > max_bytes:
        raise InvalidInput(f"{field} has {size} bytes; at most {max_bytes} are taken", field=field)
    try:
        schema = json.loads(text, parse_constant=_no_constant)
        json.dumps(schema, ensure_ascii=False).encode()  # an escape may stand for half a character
    except (ValueError, RecursionError):
        raise InvalidInput(f"{field} is not JSON", field=field) from None
    if not isinstance(schema, dict):
        raise InvalidInput(f"{field} is not a JSON object", field=field)
    definitions = {
        f"#/{name}/{key}": value
        for name in _DEFINITIONS
        if isinstance(schema.get(name), dict)
        for key, value in schema[name].items()
    }
    root = {name: value for name, value in schema.items() if name not in _DEFINITIONS}
    read: dict[str, Any] = _Reading(field, definitions).read(root, 0, ())
    return read


class _Reading:
    def __init__(self, field: str, definitions: dict[str, Any]) -> None:
        self._field = field
        self._definitions = definitions
        self._nodes = 0

    def read(self, node: Any, depth: int, within: tuple[str, ...]) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._refuse(f"has more than {MAX_NODES} parts")
        if depth > MAX_DEPTH:
            self._refuse(f"is nested deeper than {MAX_DEPTH}")
        if isinstance(node, list):
            return [self.read(each, depth + 1, within) for each in node]
        if not isinstance(node, dict):
            return node
        # A property may have the name of a keyword; what it holds is a schema then.
        if not isinstance(node.get("$ref", {}), dict):
            return self._referred(node, depth, within)
        for name in _REFUSED:
            if name in node and (name != "pattern" or isinstance(node[name], str)):
                self._refuse(f"has a {name}; that is not taken")
        if isinstance(node.get("enum"), list) and len(node["enum"]) > MAX_ENUM:
            self._refuse(f"has an enum of {len(node['enum'])}; at most {MAX_ENUM} are taken")
        for name in _REPEATS:
            value = node.get(name)
            if isinstance(value, int | float) and not 0 <= value <= MAX_REPEATS:
                shown = f"{value:g}" if abs(value) < 2**53 else "more than 15 digits"  # a float cannot hold any integer
                self._refuse(f"has a {name} of {shown}; it must be 0 to {MAX_REPEATS}")
        return {name: self.read(each, depth + 1, within) for name, each in node.items()}

    def _referred(self, node: dict[str, Any], depth: int, within: tuple[str, ...]) -> Any:
        target = node["$ref"]
        if not isinstance(target, str) or target not in self._definitions:
            self._refuse("has a $ref that is not to one of its own definitions")
        if target in within:
            self._refuse("refers to itself; recursion is not taken")
        read = self.read(self._definitions[target], depth, (*within, target))
        if not isinstance(read, dict):  # true and false are schemas
            return read
        return {**read, **{name: each for name, each in node.items() if name in ("title", "description")}}

    def _refuse(self, what: str) -> NoReturn:
        raise InvalidInput(f"{self._field} {what}", field=self._field)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
