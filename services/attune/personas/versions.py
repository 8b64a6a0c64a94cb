"""The personas that were applied to a data folder: numbered files, each written once and never changed."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from attune.errors import Aborted, DataLoss, InvalidInput, NotFound
from attune.files import (
    DRAFT_PREFIX,
    create_file,
    make_folder,
    names_in,
    open_regular,
    read_file,
    reported,
    sync,
)
from attune.ids import check_name
from attune.personas.persona import MAX_FILE_BYTES, Persona, PersonaError, read_persona, read_personas

_FILE_NAME = re.compile(r"([1-9][0-9]{0,5})\.toml")
_DIGITS = re.compile(r"[0-9a-f]{8,16}")
_ATTEMPTS = 100


@dataclass(frozen=True)
class PersonaVersion:
    """What was applied as a persona's definition, number by number; `text` is the operator's own."""

    number: int
    persona: Persona
    text: str
    applied_unix_ms: int


class PersonaVersions:
    """The files `<folder>/<tenant>/<name>/<n>.toml`; the highest number that can be read is the current one.

    Any number of processes may apply and read. Nothing is ever taken away.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin_with(self, source: Path, default: str) -> None:
        """A data folder that has none yet begins with the source's personas: with all of them, or with none.

        Raises PersonaError for a source that cannot be used, and NotFound for one that nobody of this name is in.
        """
        if names_in(self.folder):
            return
        found = read_personas(source)
        check_default(default, {persona.name for persona, _ in found}, source)
        make_folder(self.folder.parent)
        draft = PersonaVersions(self.folder.with_name(f"{DRAFT_PREFIX}{self.folder.name}.{secrets.token_hex(4)}"))
        try:
            for persona, text in found:
                draft.apply(persona, text)
            with reported(self.folder), contextlib.suppress(FileExistsError):
                # Another process may have been first; then what it wrote holds.
                _rename_new(draft.folder, self.folder)
        finally:
            shutil.rmtree(draft.folder, ignore_errors=True)
        sync(self.folder.parent)

    def apply(self, persona: Persona, text: str) -> tuple[PersonaVersion, bool]:
        """Makes it the current version, durably; says whether that changed anything.

        Raises Aborted when others apply the same persona all the time.
        """
        folder = self._of(persona.tenant, persona.name)
        make_folder(folder)
        for _ in range(_ATTEMPTS):
            numbers = self.numbers(persona.tenant, persona.name)
            with contextlib.suppress(PersonaError, NotFound):  # what is damaged is replaced
                newest = self.read(persona.tenant, persona.name, max(numbers, default=0))
                if newest.persona.version == persona.version:
                    return newest, False
            number = max(numbers, default=0) + 1
            with contextlib.suppress(FileExistsError):
                create_file(folder / f"{number}.toml", text.encode())
                return self.read(persona.tenant, persona.name, number), True
        raise Aborted(f"persona {persona.label} was applied by others meanwhile; look at it and try again")

    def all(self) -> dict[tuple[str, str], list[int]]:
        """The numbers, ascending, of every persona that was applied, by (tenant, name), in order."""
        found = {}
        for tenant in names_in(self.folder):
            for name in names_in(self.folder / tenant):
                with contextlib.suppress(InvalidInput):  # a folder that is no persona's
                    if numbers := self.numbers(tenant, name):
                        found[tenant, name] = numbers
        return found

    def numbers(self, tenant: str, name: str) -> list[int]:
        """The numbers of its versions, ascending; none for a persona that was never applied."""
        matches = (_FILE_NAME.fullmatch(file) for file in names_in(self._of(tenant, name)))
        return sorted(int(match[1]) for match in matches if match)

    def read(self, tenant: str, name: str, number: int) -> PersonaVersion:
        """Raises NotFound where there is no such number, and PersonaError for a file that is damaged."""
        file = self._of(tenant, name) / f"{number}.toml"
        where = f"version {number} of persona {name}"
        try:
            text = read_file(file, MAX_FILE_BYTES).decode()
            with open_regular(file) as descriptor:
                applied_unix_ms = os.fstat(descriptor).st_mtime_ns // 1_000_000
        except FileNotFoundError:
            raise NotFound(f"there is no {where}") from None
        except (DataLoss, UnicodeDecodeError) as error:
            raise PersonaError(f"{where}: {getattr(error, 'message', 'not UTF-8')}") from None
        persona = read_persona(text, where, name=name, tenant=tenant)
        if persona.name != name:
            raise PersonaError(f"{where}: name: it is another persona's")
        return PersonaVersion(number, persona, text, applied_unix_ms)

    def current(self, tenant: str, name: str) -> PersonaVersion:
        """The newest that can be read. Raises NotFound, and PersonaError where all are damaged."""
        damaged: PersonaError | None = None
        for number in reversed(self.numbers(tenant, name)):
            try:
                return self.read(tenant, name, number)
            except PersonaError as error:
                damaged = damaged or error
        raise damaged or NotFound(f"no persona {name}")

    def find(self, tenant: str, name: str, which: str) -> PersonaVersion:
        """By its number (`3`) or the first 8 digits or more of its version; of equal ones the newest.

        Raises NotFound, and InvalidInput for what is neither.
        """
        numbers = self.numbers(tenant, name)
        if not numbers:
            raise NotFound(f"no persona {name}")
        if _FILE_NAME.fullmatch(f"{which}.toml"):
            return self.read(tenant, name, int(which))
        if not _DIGITS.fullmatch(which):
            raise InvalidInput("a version is a number such as 3, or 8 to 16 digits of its hash", field="version")
        for number in reversed(numbers):
            with contextlib.suppress(PersonaError):
                found = self.read(tenant, name, number)
                if found.persona.version.startswith(which):
                    return found
        raise NotFound(f"no version {which} of persona {name}")

    def history(self, tenant: str, name: str) -> Sequence[PersonaVersion]:
        """All that can be read, newest first."""
        found = []
        for number in reversed(self.numbers(tenant, name)):
            with contextlib.suppress(PersonaError):
                found.append(self.read(tenant, name, number))
        return found

    def _of(self, tenant: str, name: str) -> Path:
        return self.folder / check_name(tenant, "tenant") / check_name(name, "persona")


def check_default(default: str, names: Collection[str], where: Path) -> None:
    """Raises NotFound when nobody answers where a request names nobody."""
    if default not in names:
        raise NotFound(f"default_persona is {default}; {where} has {', '.join(sorted(names)) or 'nobody'}")


def _rename_new(source: Path, target: Path) -> None:
    """Raises FileExistsError where the target has something in it."""
    try:
        source.rename(target)
    except OSError as error:
        if not names_in(target):
            raise
        raise FileExistsError from error
