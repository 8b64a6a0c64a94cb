"""Who may do a work that one process at a time should do, for a while."""

import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from attune.files import sync

# Older entries are kept for whoever is just reading them.
_KEPT = 4


@dataclass(frozen=True)
class _Entry:
    number: int
    owner: str
    until_unix_seconds: float


class Leases:
    """`<folder>/<name>/<n>.json`, each made only if absent; the newest says who has the lease, and until when.

    A holder renews by asking again. One that dies loses it when its time is over; one that was frozen for longer and
    goes on does not know, so nothing may rest on the lease but that work is not done twice.
    """

    def __init__(self, folder: Path, seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._seconds = seconds
        self._clock = clock
        self._owner = f"{os.getpid()}-{secrets.token_hex(8)}"

    def hold(self, name: str) -> bool:
        """Takes or renews the lease of that name; False while another has it."""
        newest, now = self._newest(name), self._clock()
        if newest is not None and newest.until_unix_seconds > now:
            if newest.owner != self._owner:
                return False
            if newest.until_unix_seconds - now > self._seconds / 2:
                return True
        number = 1 if newest is None else newest.number + 1
        return self._write(name, _Entry(number, self._owner, now + self._seconds))

    def release(self, name: str) -> None:
        """Lets others have it at once; does nothing where it is another's."""
        newest = self._newest(name)
        if newest is not None and newest.owner == self._owner:
            self._write(name, _Entry(newest.number + 1, self._owner, 0.0))

    def _newest(self, name: str) -> _Entry | None:
        numbers = sorted(int(file.stem) for file in (self._folder / name).glob("*.json"))
        if not numbers:
            return None
        try:
            return _Entry(**json.loads((self._folder / name / f"{numbers[-1]}.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # overtaken just now, or damaged: as good as over
            return _Entry(numbers[-1], "", 0.0)

    def _write(self, name: str, entry: _Entry) -> bool:
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{self._owner}"
        draft.write_text(json.dumps(asdict(entry)))
        sync(draft)
        try:
            os.link(draft, folder / f"{entry.number}.json")
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        (folder / f"{entry.number - _KEPT}.json").unlink(missing_ok=True)
        return True
