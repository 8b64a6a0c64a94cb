"""Personas: named ways of answering."""

from attune.personas.persona import Persona, SamplingDefaults, load_personas

__all__ = ["Persona", "SamplingDefaults", "load_personas"]
