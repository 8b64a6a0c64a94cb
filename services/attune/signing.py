"""The keys that sign response ids and feedback tokens: the newest signs, older ones still verify."""

import base64
import dataclasses
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from attune import ids, secret_files
from attune.clock import now_unix_ms
from attune.errors import DataLoss, NotFound
from attune.v1 import feedback_pb2

logger = logging.getLogger(__name__)

SECRET_BYTES = 32

_LOOK_SECONDS = 1.0
_KEY_ID = re.compile(r"k[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class SigningKey:
    """One secret, and from it a key for each use. `tokens_until` is the end of the tokens that it signed, unix ms."""

    key_id: str
    created_unix_ms: int
    secret: bytes = field(repr=False)
    tokens_until_unix_ms: int | None = None

    @cached_property
    def response_id(self) -> bytes:
        return hmac.digest(self.secret, b"response id", "sha256")

    @cached_property
    def feedback_token(self) -> bytes:
        return hmac.digest(self.secret, b"feedback token", "sha256")


class SigningKeys:
    """An installation's signing keys, in `<folder>/signing.json`, oldest first.

    Running services look at the file again at most every second, and at once when they meet what no key of theirs
    signed: another replica may know a newer one. A file that cannot be read while running is reported, and the last
    good one goes on being used.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._file = folder / "signing.json"
        self._clock = clock
        if not self._file.exists():
            secret_files.create(self._file, _as_json([_new_key(1)]))
        self._looked_seconds = clock()
        self._seen = self._stamp()
        self._keys = self._read()

    def all(self) -> tuple[SigningKey, ...]:
        """Every key, oldest first; the last one signs."""
        if self._clock() - self._looked_seconds >= _LOOK_SECONDS:
            self._look()
        return self._keys

    def new_response_id(self, tenant: str) -> str:
        return ids.new_response_id(tenant, self.all()[-1].response_id)

    def imported_response_id(self, tenant: str, import_id: str, index: int) -> str:
        """Of the oldest key, so that a rotation leaves imports what they were."""
        return ids.imported_response_id(tenant, import_id, index, self.all()[0].response_id)

    def check_response_id(self, response_id: str, tenant: str) -> None:
        """Raises NotFound unless a key that is kept made the id for this tenant."""
        for keys in (self.all, self._look):
            for key in reversed(keys()):
                if ids.is_response_id(response_id, tenant, key.response_id):
                    return
        raise NotFound("no such response", field="response_id")

    def sign_token(self, handle: feedback_pb2.FeedbackHandle) -> str:
        """The feedback token of a handle, which is given the key's id."""
        key = self.all()[-1]
        handle.key_id = key.key_id
        return ids.sign_feedback_token(handle, key.feedback_token)

    def read_token(self, token: str, now_unix_seconds: float) -> feedback_pb2.FeedbackHandle:
        """The handle in a feedback token; raises PermissionDenied unless one of the keys signed it and it is good yet.

        A key that was replaced verifies tokens for as long as the last one that it signed could live, and no longer:
        whoever has stolen it cannot make tokens for ever.
        """

        def find(key_id: str) -> bytes | None:
            for keys in (self.all, self._look):
                for key in keys():
                    until = key.tokens_until_unix_ms
                    if key.key_id == key_id and (until is None or now_unix_seconds * 1000 <= until):
                        return key.feedback_token
            return None

        return ids.read_feedback_token(token, find, now_unix_seconds)

    def rotate(self, *, token_life_seconds: float, retire: bool = False) -> SigningKey:
        """Makes a key that signs from now on, here at once, in running services within two seconds.

        With `retire` the older ones are deleted: nothing that they signed is taken any more.
        """
        with secret_files.writing(self._folder):
            earlier = self._look()
            key = _new_key(int(earlier[-1].key_id[1:]) + 1)
            until = key.created_unix_ms + round(token_life_seconds * 1000)
            kept = [dataclasses.replace(one, tokens_until_unix_ms=one.tokens_until_unix_ms or until) for one in earlier]
            secret_files.replace(self._file, _as_json([*([] if retire else kept), key]))
            self._look()
        return key

    def _look(self) -> tuple[SigningKey, ...]:
        """The keys after a look at the file."""
        self._looked_seconds = self._clock()
        stamp = self._stamp()
        if stamp != self._seen:
            try:
                self._keys = self._read()
            except DataLoss as error:
                logger.error("signing keys unreadable; the last good ones go on", extra={"reason": error.message})
            self._seen = stamp
        return self._keys

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _read(self) -> tuple[SigningKey, ...]:
        try:
            rows = json.loads(self._file.read_text("ascii"))["keys"]
            keys = tuple(SigningKey(**{**row, "secret": base64.b64decode(row["secret"])}) for row in rows)
        except OSError as error:
            raise DataLoss(f"{self._file}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataLoss(f"{self._file}: not a file of signing keys") from None
        if not keys or not all(map(_is_whole, keys)):
            raise DataLoss(f"{self._file}: not a file of signing keys")
        return keys


def _is_whole(key: SigningKey) -> bool:
    return (
        len(key.secret) == SECRET_BYTES
        and isinstance(key.key_id, str)
        and _KEY_ID.fullmatch(key.key_id) is not None
        and isinstance(key.created_unix_ms, int)
        and isinstance(key.tokens_until_unix_ms, int | None)
    )


def _new_key(number: int) -> SigningKey:
    return SigningKey(f"k{number}", now_unix_ms(), secrets.token_bytes(SECRET_BYTES))


def _as_json(keys: list[SigningKey]) -> bytes:
    rows = [{**dataclasses.asdict(key), "secret": base64.b64encode(key.secret).decode()} for key in keys]
    return (json.dumps({"keys": rows}, indent=1) + "\n").encode()
