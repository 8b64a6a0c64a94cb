"""A persona: how somebody answers, within which limits, with which tools; as a TOML text says it."""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from attune.chat.sampling import check_defaults
from attune.chat.tools import MAX_TOOLS, check_tools
from attune.errors import AttuneError, InvalidInput
from attune.ids import DEFAULT_TENANT, check_name, persona_label
from attune.v1 import event_pb2

FEEDBACK_TAGS = ("wrong", "unsafe", "false-promise", "too-long", "too-short", "off-topic", "rude", "great")
MAX_FILE_BYTES = 256 << 10
MAX_TAG_CHARACTERS = 64

_HASH_DIGITS = 16


class PersonaError(AttuneError):
    """A persona's text cannot be used."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class SamplingDefaults(_Part):
    """What applies where a request says nothing."""

    temperature: float = Field(0.8, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1000)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    max_tokens: int = Field(256, ge=1, lt=2**31)


class SamplingLimits(_Part):
    """What a request may not go beyond."""

    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="Of one answer; none: what the model takes.")
    min_temperature: float = Field(0.0, ge=0, le=2)
    max_temperature: float = Field(2.0, ge=0, le=2)


class PersonaTool(_Part):
    """A tool that the model is always offered; `parameters` is the JSON schema of its arguments, as a table."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


def _check_tag(tag: str) -> str:
    if not 1 <= len(tag) <= MAX_TAG_CHARACTERS or not tag.isprintable() or tag != tag.strip():
        raise ValueError(f"a tag has 1 to {MAX_TAG_CHARACTERS} printable characters, and no blanks around them")
    return tag


class Persona(BaseModel):
    """One tenant's named way of answering."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str
    tenant: str = DEFAULT_TENANT
    system_prompt: str = Field(max_length=32768)
    guidelines: str = Field("", max_length=65536, description="Markdown for reviewers: what a good response is.")
    sampling: SamplingDefaults = SamplingDefaults()
    limits: SamplingLimits = SamplingLimits()
    tools: tuple[PersonaTool, ...] = Field((), max_length=MAX_TOOLS)
    feedback_tags: tuple[Annotated[str, AfterValidator(_check_tag)], ...] = Field(
        FEEDBACK_TAGS, max_length=64, description="What feedback may be tagged with."
    )
    approval: Literal["gate", "person"] = Field(
        "gate", description="Whether a policy that passed the gate meets users at once, or once a person says so."
    )

    @field_validator("name", "tenant")
    @classmethod
    def _check_name(cls, value: str) -> str:
        try:
            return check_name(value, "it")
        except InvalidInput as error:
            raise ValueError(error.message) from None

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        try:
            check_tools(self.offered_tools, set())
            check_defaults(self.sampling, self.limits)
        except InvalidInput as error:
            raise ValueError(error.message.replace("parameters_json", "parameters")) from None
        return self

    @cached_property
    def version(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of what differs from the defaults.

        Another definition is another version; comments, the order of keys and a default that is written out are not.
        """
        definition = json.dumps(self.model_dump(exclude_defaults=True), sort_keys=True, ensure_ascii=False)
        return _digest(definition)

    @cached_property
    def guideline_version(self) -> str:
        """By which reviewers say what they judged by; empty where there are no guidelines."""
        return _digest(self.guidelines) if self.guidelines else ""

    @cached_property
    def offered_tools(self) -> tuple[event_pb2.Tool, ...]:
        """The tools as the model is offered them."""
        return tuple(
            event_pb2.Tool(
                name=tool.name,
                description=tool.description,
                parameters_json=_json(tool.parameters, f"tools[{index}].parameters") if tool.parameters else "",
            )
            for index, tool in enumerate(self.tools)
        )

    @property
    def label(self) -> str:
        """See persona_label."""
        return persona_label(self.tenant, self.name)


def read_persona(text: str, where: str, *, name: str, tenant: str | None = None) -> Persona:
    """The persona that a TOML text defines; name and tenant are its own, where it says them.

    Raises PersonaError that says where, which key and why; also when the text names another tenant than `tenant`.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PersonaError(f"{where}: not valid TOML: {error}") from None
    except RecursionError:
        raise PersonaError(f"{where}: not valid TOML: nested too deep") from None
    if tenant is not None and values.setdefault("tenant", tenant) != tenant:
        raise PersonaError(f"{where}: tenant: it belongs to another tenant than {tenant}")
    try:
        return Persona.model_validate({"name": name, **values})
    except ValidationError as error:
        raise PersonaError(f"{where}: {_complaint(error)}") from None


def read_persona_file(file: Path, tenant: str | None = None, name: str = "") -> tuple[Persona, str]:
    """The persona of an operator's file and the file's text. Where that says no name it is `name`, else the file's.

    Raises PersonaError.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise PersonaError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if len(content) > MAX_FILE_BYTES:
        raise PersonaError(f"{file}: has more than {MAX_FILE_BYTES} bytes, which is the limit")
    return read_persona(text, str(file), name=name or file.stem, tenant=tenant), text


def read_personas(folder: Path) -> list[tuple[Persona, str]]:
    """The persona and the text of every `<name>.toml` in the folder, by name.

    Raises PersonaError: for a bad file, for two files of one persona, and when there is none.
    """
    found: dict[tuple[str, str], tuple[Persona, str]] = {}
    for file in sorted(folder.glob("*.toml")):
        persona, text = read_persona_file(file)
        if (persona.tenant, persona.name) in found:
            raise PersonaError(f"{file}: name: another file is persona {persona.label} already")
        found[persona.tenant, persona.name] = persona, text
    if not found:
        raise PersonaError(f"{folder}: no persona here; it wants at least one <name>.toml")
    return list(found.values())


def load_personas(folder: Path) -> Mapping[str, Persona]:
    """The default tenant's personas of a folder, by name. Raises PersonaError."""
    return {persona.name: persona for persona, _ in read_personas(folder) if persona.tenant == DEFAULT_TENANT}


def _complaint(error: ValidationError) -> str:
    """The first problem: its key and what is wrong, without what was written there."""
    problem = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"{key}: no such key"
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {reason[:1].lower()}{reason[1:]}" if key else reason


def _json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # a date or a time, infinity, a table of tables without end
        raise InvalidInput(f"{what} holds what JSON has no word for") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
