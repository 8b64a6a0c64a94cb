"""API keys: made once, shown once, kept as hashes in one file that every service reads again when it changes."""

import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from attune import secret_files
from attune.access import NOBODY, UNLIMITED, Caller, KeyLimits, Role
from attune.addresses import is_loopback
from attune.clock import now_unix_ms
from attune.errors import DataLoss, FailedPrecondition, InvalidInput, NotFound, Unauthenticated
from attune.ids import DEFAULT_TENANT, check_name
from attune.settings import API_KEY_VARIABLE

logger = logging.getLogger(__name__)

MAX_LABEL_CHARACTERS = 128

_SCHEME = "bearer "
_KEY = re.compile(r"ak-([0-9a-z]{12})-([A-Za-z0-9_-]{43})")
_ID_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
_SECRET_BYTES = 32
_LOOK_SECONDS = 1.0
_DEVELOPMENT = "development"
_FORGED = "the API key is not one of this installation, or it was revoked"


@dataclass(frozen=True)
class ApiKey:
    """What is kept of a key. The secret has 256 random bits, so a plain SHA-256 of it hides it."""

    key_id: str
    secret_sha256: str
    tenant: str
    roles: tuple[Role, ...]
    label: str
    created_unix_ms: int
    revoked_unix_ms: int | None = None
    limits: KeyLimits = UNLIMITED


_FILE = TypeAdapter(dict[Literal["keys"], tuple[ApiKey, ...]])


class KeyStore:
    """The keys of an installation, in `<folder>/keys.json`; is an access.Authenticator.

    Writers take turns and replace the file in one step; readers look at it again at most every second. A file that
    cannot be read while running is reported, and the last good one goes on being used.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._file = folder / "keys.json"
        self._clock = clock
        self._looked_seconds = clock()
        self._seen = self._stamp()
        self._keys = self._read()

    def authenticate(self, credential: str | None) -> Caller:
        """Who presents this `Authorization` value; NOBODY for none. Raises Unauthenticated."""
        if credential is None:
            return NOBODY
        scheme, text = credential[: len(_SCHEME)], credential[len(_SCHEME) :]
        match = _KEY.fullmatch(text)
        if scheme.lower() != _SCHEME or match is None:
            raise Unauthenticated(_FORGED)
        self._refresh()
        key = self._keys.get(match[1])
        secret_sha256 = hashlib.sha256(match[2].encode()).hexdigest()
        if key is None or not hmac.compare_digest(key.secret_sha256, secret_sha256) or key.revoked_unix_ms:
            raise Unauthenticated(_FORGED)
        return Caller(key.tenant, key.key_id, frozenset(key.roles), key.limits)

    def list(self) -> list[ApiKey]:
        """Every key, revoked ones too, oldest first."""
        self._refresh(at_once=True)
        return sorted(self._keys.values(), key=lambda key: (key.created_unix_ms, key.key_id))

    def create(
        self,
        tenant: str,
        roles: Sequence[Role],
        *,
        label: str = "",
        limits: KeyLimits | None = None,
    ) -> str:
        """The new key, durably kept; it cannot be shown again. Raises InvalidInput."""
        check_name(tenant, "tenant")
        if not roles:
            raise InvalidInput("a key needs at least one role", field="roles")
        if len(label) > MAX_LABEL_CHARACTERS or not label.isprintable():
            raise InvalidInput(
                f"label must be at most {MAX_LABEL_CHARACTERS} printable characters; it has {len(label)}", field="label"
            )
        with self._writing():
            return self._add(tenant, roles, label, limits or UNLIMITED)

    def revoke(self, key_id: str) -> ApiKey:
        """The key is refused from now on, in other processes within two seconds. Raises NotFound."""
        with self._writing():
            key = self._keys.get(key_id)
            if key is None:
                raise NotFound(f"there is no key {key_id}")
            if key.revoked_unix_ms is None:
                revoked = ApiKey(**{**vars(key), "revoked_unix_ms": now_unix_ms()})
                self._write({**self._keys, key_id: revoked})
            return self._keys[key_id]

    def development_key(self) -> str:
        """A key of the default tenant with every role, for a start on this machine alone; made once.

        It is kept in plain text in `<folder>/development.key`, which only its owner may read.
        """
        file = self._folder / "development.key"
        with self._writing():
            if file.exists():
                return file.read_text("ascii").strip()
            key = self._add(DEFAULT_TENANT, tuple(Role), _DEVELOPMENT, UNLIMITED)
            secret_files.replace(file, f"{key}\n".encode())
            return key

    def open_for(self, host: str) -> None:
        """Makes sure that somebody may call: on this machine alone a development key will do.

        Raises FailedPrecondition when there is no key and the address is open to others.
        """
        if any(key.revoked_unix_ms is None and key.label != _DEVELOPMENT for key in self.list()):
            return
        if not is_loopback(host):
            raise FailedPrecondition(
                f"there is no API key, and {host} is open to others: make one with `attune key create`, "
                "or listen on 127.0.0.1"
            )
        self.development_key()

    def _add(self, tenant: str, roles: Sequence[Role], label: str, limits: KeyLimits) -> str:
        """Makes a key and keeps it; for whoever holds the lock."""
        key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(12))
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        key = ApiKey(
            key_id=key_id,
            secret_sha256=hashlib.sha256(secret.encode()).hexdigest(),
            tenant=tenant,
            roles=tuple(sorted(set(roles))),
            label=label,
            created_unix_ms=now_unix_ms(),
            limits=limits,
        )
        self._write({**self._keys, key_id: key})
        return f"ak-{key_id}-{secret}"

    def _refresh(self, *, at_once: bool = False) -> None:
        now = self._clock()
        if not at_once and now - self._looked_seconds < _LOOK_SECONDS:
            return
        self._looked_seconds = now
        stamp = self._stamp()
        if stamp == self._seen:
            return
        try:
            self._keys = self._read()
        except DataLoss as error:
            logger.error("API keys unreadable; the last good ones go on", extra={"reason": error.message})
        self._seen = stamp

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _read(self) -> dict[str, ApiKey]:
        try:
            text = self._file.read_text("utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise DataLoss(f"{self._file}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
        try:
            keys = _FILE.validate_json(text, strict=True)["keys"]
        except ValueError:
            raise DataLoss(f"{self._file}: not a file of API keys") from None
        return {key.key_id: key for key in keys}

    def _write(self, keys: dict[str, ApiKey]) -> None:
        text = json.dumps({"keys": [asdict(key) for key in keys.values()]}, indent=1) + "\n"
        secret_files.replace(self._file, text.encode())
        self._keys, self._seen = keys, self._stamp()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time, and each begins with what the file holds."""
        with secret_files.writing(self._folder):
            self._keys, self._seen = self._read(), self._stamp()
            yield


def local_api_key(data: Path) -> str:
    """What a command on this machine presents: ATTUNE_API_KEY, else the data folder's development key, else nothing."""
    given = os.environ.get(API_KEY_VARIABLE, "")
    if given:
        return given
    try:
        return (data / "access" / "development.key").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
