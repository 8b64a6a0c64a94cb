"""People who asked to be forgotten: what is asked, how far it is, and what remains of it.

    <data>/erasures/<erasure id>/request.json       whom, and since when; gone once it is done
                                 found.json         what is theirs, by its ids; gone once it is done
                                 state.json         the steps that are done, and what the next one waits for
                                 inference.json     what the inference service removed
                                 certificate.json   written last; names nobody, but who knows the person can tell

The aggregator writes all of it but `inference.json`. Each file is replaced in one step.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attune import secret_files
from attune.errors import DataLoss, NotFound

REQUEST, FOUND, STATE, INFERENCE, CERTIFICATE = "request", "found", "state", "inference", "certificate"


@dataclass(frozen=True)
class Request:
    """One person's: `person` is the pseudonym. What they said after it was asked is not meant."""

    erasure_id: str
    tenant: str
    person: str
    requested_unix_ms: int


def digest_of(tenant: str, person: str) -> str:
    """What stays of a person: enough to drop what comes of them late, and to tell that a certificate is theirs."""
    return hashlib.sha256(f"{tenant}\0{person}".encode()).hexdigest()


class Erasures:
    """The folder's; any number of processes may read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._certified: dict[str, tuple[str, int]] = {}

    def ask(self, tenant: str, person: str, now_unix_ms: int) -> Request:
        """Durably; of a person whose erasure still runs that one is meant."""
        with secret_files.writing(self.folder):
            for running in self.running():
                if (running.tenant, running.person) == (tenant, person):
                    return running
            request = Request(f"e-{secrets.token_hex(8)}", tenant, person, now_unix_ms)
            self.write(request.erasure_id, REQUEST, asdict(request))
        return request

    def ids(self) -> list[str]:
        return sorted(file.name for file in self.folder.glob("e-*"))

    def running(self) -> list[Request]:
        """The oldest first."""
        found = []
        for erasure_id in self.ids():
            content = self.read(erasure_id, REQUEST)
            if content is not None:
                found.append(Request(**content))
        return sorted(found, key=lambda request: (request.requested_unix_ms, request.erasure_id))

    def dropped(self) -> dict[str, int]:
        """Of whom nothing that was made until a time comes in any more: by digest."""
        dropped: dict[str, int] = {}
        for erasure_id in self.ids():
            found = self._certified.get(erasure_id) or self._look(erasure_id)
            if found is not None:
                digest, until_unix_ms = found
                dropped[digest] = max(dropped.get(digest, 0), until_unix_ms)
        return dropped

    def _look(self, erasure_id: str) -> tuple[str, int] | None:
        """A certificate never changes: it is read once."""
        request, certificate = self.read(erasure_id, REQUEST), self.read(erasure_id, CERTIFICATE)
        if certificate is not None:
            self._certified[erasure_id] = certificate["person_sha256"], certificate["requested_unix_ms"]
            return self._certified[erasure_id]
        if request is not None:
            return digest_of(request["tenant"], request["person"]), request["requested_unix_ms"]
        return None

    def read(self, erasure_id: str, name: str) -> dict[str, Any] | None:
        """None when it is not there. Raises DataLoss when it is damaged."""
        file = self._file(erasure_id, name)
        try:
            content = json.loads(file.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            raise DataLoss(f"{file} is damaged") from None
        if not isinstance(content, dict):
            raise DataLoss(f"{file} is damaged")
        return content

    def write(self, erasure_id: str, name: str, content: Mapping[str, Any]) -> None:
        secret_files.replace(self._file(erasure_id, name), json.dumps(content, indent=1).encode())

    def remove(self, erasure_id: str, name: str) -> None:
        self._file(erasure_id, name).unlink(missing_ok=True)

    def check(self, erasure_id: str, tenant: str) -> None:
        """Raises NotFound unless it is the tenant's."""
        for name in (REQUEST, CERTIFICATE) if erasure_id in self.ids() else ():
            content = self.read(erasure_id, name)
            if content is not None and content["tenant"] == tenant:
                return
        raise NotFound("no such erasure", field="erasure_id")

    def _file(self, erasure_id: str, name: str) -> Path:
        return self.folder / erasure_id / f"{name}.json"
