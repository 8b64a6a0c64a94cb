"""The personas of an installation as they are now, by tenant and name."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from attune import metrics
from attune.errors import AttuneError, NotFound, Unavailable
from attune.personas.persona import Persona
from attune.personas.versions import PersonaVersion, PersonaVersions, check_default

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0

_Key = tuple[str, str]


class Personas:
    """Who can be asked. Another tenant's persona is as one that does not exist.

    What is applied is noticed at most a second after the last look. What cannot be read is reported, and the last good
    version goes on; so does a persona whose files are gone. Safe to use from several threads.
    """

    def __init__(self, versions: PersonaVersions, default: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises NotFound when nobody has the default's name."""
        self._versions = versions
        self.default = default
        self._clock = clock
        self._looking = threading.Lock()
        self._known: Mapping[_Key, PersonaVersion] = {}
        self._complaints: Mapping[str, str] = {}
        self._looked_seconds = clock()
        self._known = self._read()
        check_default(default, {name for _, name in self._known}, versions.folder)

    @classmethod
    def open(cls, data: Path, source: Path, default: str) -> "Personas":
        """The data folder's personas; a new data folder begins with those of the source.

        Raises PersonaError for a bad source, and NotFound when nobody has the default's name.
        """
        versions = PersonaVersions(data / "personas")
        versions.begin_with(source, default)
        return cls(versions, default)

    def find(self, tenant: str, name: str) -> Persona:
        """The tenant's persona; the default one for an empty name. Raises NotFound."""
        version = self._now().get((tenant, name or self.default))
        if version is None:
            raise NotFound("no such persona", field="persona")
        return version.persona

    def of(self, tenant: str) -> list[Persona]:
        """The tenant's personas, by name."""
        return [persona for persona in self if persona.tenant == tenant]

    def __iter__(self) -> Iterator[Persona]:
        """All of them, by tenant and name."""
        known = self._now()
        return iter([known[key].persona for key in sorted(known)])

    def _now(self) -> Mapping[_Key, PersonaVersion]:
        if self._clock() - self._looked_seconds >= _LOOK_SECONDS and self._looking.acquire(blocking=False):
            try:
                self._known = self._read()
            except Unavailable as error:
                self._complain({"": error.message})
            finally:
                self._looked_seconds = self._clock()
                self._looking.release()
        return self._known

    def _read(self) -> dict[_Key, PersonaVersion]:
        """What is known, with what is new; versions never change, so only those with another number are read."""
        known = dict(self._known)
        there = self._versions.all()
        complaints = {"/".join(key): "its files are gone" for key in known.keys() - there.keys()}
        for key, numbers in there.items():
            for number in reversed(numbers):
                if key in known and known[key].number == number:
                    break
                try:
                    version = self._versions.read(*key, number)
                except AttuneError as error:
                    complaints["/".join(key)] = error.message
                    continue
                known[key] = version
                logger.info(
                    "persona in use",
                    extra={"tenant": key[0], "persona": key[1], "number": number, "version": version.persona.version},
                )
                break
        self._complain(complaints)
        return known

    def _complain(self, complaints: Mapping[str, str]) -> None:
        """Says each once, for as long as it is so."""
        metrics.PERSONA_PROBLEMS.set(len(complaints))
        for which, reason in complaints.items():
            if self._complaints.get(which) != reason:
                logger.error(
                    "persona unreadable; the last good one goes on", extra={"persona": which, "reason": reason}
                )
        self._complaints = complaints
