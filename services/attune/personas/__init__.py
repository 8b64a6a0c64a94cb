"""Personas: named ways of answering."""

from attune.personas.persona import Persona, PersonaError, load_personas
from attune.personas.store import Personas
from attune.personas.versions import PersonaVersion, PersonaVersions

__all__ = ["Persona", "PersonaError", "PersonaVersion", "PersonaVersions", "Personas", "load_personas"]
