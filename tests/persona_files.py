"""Personas as an operator applies them."""

from collections.abc import Mapping
from pathlib import Path

from attune.personas import Persona, Personas, PersonaVersions
from attune.personas.persona import read_persona


def personas_of(texts: Mapping[str, str]) -> dict[str, Persona]:
    return {name: read_persona(text, name, name=name) for name, text in texts.items()}


def apply(data: Path, name: str, text: str, tenant: str | None = None) -> Persona:
    """Makes it the current version in this data folder."""
    persona = read_persona(text, name, name=name, tenant=tenant)
    PersonaVersions(data / "personas").apply(persona, text)
    return persona


def stored(data: Path, texts: Mapping[str, str], default: str = "concierge") -> Personas:
    """The data folder's personas, once these are applied."""
    for name, text in texts.items():
        apply(data, name, text)
    return Personas(PersonaVersions(data / "personas"), default)
