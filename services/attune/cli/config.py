"""`attune config`: the settings in force, and a commented example made from their definitions."""

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

import typer

from attune.cli.options import ConfigOption, DataOption, read_settings

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

config_app = typer.Typer(help="The settings in force, and an example file.", no_args_is_help=True)

_LIMITS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


@config_app.command("show")
def show(config: ConfigOption = None, data: DataOption = None) -> None:
    """Print the settings in force, as TOML: file, environment and defaults together."""
    print(effective(read_settings(config, data)), end="")


@config_app.command("example")
def print_example() -> None:
    """Print an example file with every setting, its meaning, limits and default."""
    from attune.settings import Settings

    print(example(Settings), end="")


def effective(settings: "BaseModel") -> str:
    """TOML text of these settings; passwords in addresses are left out, and what is not set stands as a comment."""
    return "\n".join(_effective(settings, "")).lstrip("\n") + "\n"


def _effective(section: "BaseModel", path: str) -> Iterator[str]:
    if path:
        yield f"\n[{path}]"
    for name in _plain_first(type(section)):
        value = getattr(section, name)
        inner = f"{path}.{name}".lstrip(".")
        if _is_section(value):
            yield from _effective(value, inner)
        else:
            yield f"#{name} =" if value is None else f"{name} = {_toml(value)}"


def example(settings: "type[BaseModel]") -> str:
    """TOML text in which every setting stands as a comment with its default."""
    return "\n".join(_example(settings, "")).lstrip("\n") + "\n"


def _example(section: "type[BaseModel]", path: str) -> Iterator[str]:
    if path:
        yield f"\n# {(section.__doc__ or '').strip()}\n[{path}]"
    else:
        yield "# Settings of attune, each with its default: take away the # to change one."
        yield "# The environment overrides the file: ATTUNE_INFERENCE__GRPC_PORT=50061 is grpc_port of [inference]."
        yield "# Relative paths are relative to the folder that attune is started in."
    for name in _plain_first(section):
        field = section.model_fields[name]
        inner = f"{path}.{name}".lstrip(".")
        if _is_section(field.default):
            yield from _example(type(field.default), inner)
            continue
        if not path:
            yield ""
        about = " ".join(part for part in (field.description or "", _limits(field)) if part)
        if about:
            yield f"# {about}"
        yield f"#{name} =" if field.default is None else f"#{name} = {_toml(field.default)}"


def _plain_first(section: "type[BaseModel]") -> list[str]:
    """In TOML a section's own keys stand before its subsections."""
    return sorted(section.model_fields, key=lambda name: _is_section(section.model_fields[name].default))


def _is_section(value: object) -> bool:
    return hasattr(type(value), "model_fields")


def _limits(field: "FieldInfo") -> str:
    """`(0 to 65535.)`, `(One of: auto, float16.)`, or nothing."""
    kinds = get_args(field.annotation) if isinstance(field.annotation, types.UnionType) else (field.annotation,)
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        return f"(One of {', '.join(choices)}.)"
    limits = {
        attribute: getattr(limit, attribute)
        for attribute in _LIMITS
        for limit in field.metadata
        if hasattr(limit, attribute)
    }
    if {"ge", "le"} <= limits.keys():
        return f"({limits['ge']} to {limits['le']}.)"
    return (
        f"({', '.join(_LIMITS[name].format(limit) for name, limit in limits.items()).capitalize()}.)" if limits else ""
    )


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name} = {_toml(each)}' for name, each in value.items())}}}"
    text = str(value)
    if not isinstance(value, Path) and "://" in text:
        text = _without_password(text)
    return json.dumps(text, ensure_ascii=False)


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    if parts.password is None:
        return address
    return parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}").geturl()
