"""A persona: a system prompt, guidelines and sampling defaults, read from `<name>.toml`."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attune.errors import AttuneError, InvalidInput
from attune.ids import DEFAULT_TENANT, check_name

FEEDBACK_TAGS = ("wrong", "unsafe", "false-promise", "too-long", "too-short", "off-topic", "rude", "great")


class PersonaError(AttuneError):
    """A persona's file cannot be used."""


class SamplingDefaults(BaseModel):
    """What applies where a request says nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(0.8, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1000)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    max_tokens: int = Field(256, ge=1)


class Persona(BaseModel):
    """One tenant's named way of answering."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str
    tenant: str = DEFAULT_TENANT
    system_prompt: str = Field(max_length=32768)
    guidelines: str = Field("", max_length=65536, description="Markdown for reviewers: what a good response is.")
    sampling: SamplingDefaults = SamplingDefaults()
    feedback_tags: tuple[str, ...] = Field(
        FEEDBACK_TAGS, max_length=64, description="What feedback may be tagged with."
    )

    approval: Literal["gate", "person"] = Field(
        "gate", description="Whether a policy that passed the gate meets users at once, or once a person says so."
    )

    @property
    def version(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the definition: another text is another version."""
        definition = json.dumps(self.model_dump(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(definition.encode()).hexdigest()[:16]


def load_personas(folder: Path) -> dict[str, Persona]:
    """The personas of every `<name>.toml` in the folder, by name; raises PersonaError that names the file and key."""
    personas: dict[str, Persona] = {}
    for file in sorted(folder.glob("*.toml")):
        try:
            check_name(file.stem, "persona")
            personas[file.stem] = Persona.model_validate({"name": file.stem, **tomllib.loads(file.read_text("utf-8"))})
        except ValidationError as error:
            first = error.errors()[0]
            raise PersonaError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except (InvalidInput, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PersonaError(f"{file}: {error}") from None
    if not personas:
        raise PersonaError(f"{folder}: no persona here; it wants at least one <name>.toml")
    return personas
