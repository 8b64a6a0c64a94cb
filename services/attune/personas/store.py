"""The personas of an installation, by tenant and name."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from attune.errors import NotFound
from attune.personas.persona import Persona, load_personas


class Personas:
    """Who can be asked. Another tenant's persona is as one that does not exist."""

    def __init__(self, personas: Iterable[Persona], default: str) -> None:
        self._personas = {(persona.tenant, persona.name): persona for persona in personas}
        self.default = default

    @classmethod
    def load(cls, folder: Path, default: str) -> "Personas":
        """Raises PersonaError for a bad file, and NotFound when nobody has the default's name."""
        loaded = load_personas(folder)
        if default not in loaded:
            raise NotFound(f"the default persona {default} has no file in {folder}")
        return cls(loaded.values(), default)

    def find(self, tenant: str, name: str) -> Persona:
        """The tenant's persona; the default one for an empty name. Raises NotFound."""
        persona = self._personas.get((tenant, name or self.default))
        if persona is None:
            raise NotFound("no such persona", field="persona")
        return persona

    def of(self, tenant: str) -> list[Persona]:
        """The tenant's personas, by name."""
        return sorted((one for one in self if one.tenant == tenant), key=lambda persona: persona.name)

    def __iter__(self) -> Iterator[Persona]:
        return iter(self._personas.values())
