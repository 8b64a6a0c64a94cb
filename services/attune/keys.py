"""The installation's secrets: made once, kept in files that only their owner may read."""

import contextlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from attune.errors import DataLoss

_SECRET_BYTES = 32


@dataclass(frozen=True)
class Keys:
    """What the services need to sign ids, tokens and pseudonyms, 32 random bytes each."""

    response_id: bytes
    feedback_token: Mapping[str, bytes]
    feedback_token_id: str
    end_user: bytes
    split: bytes

    @classmethod
    def load_or_create(cls, folder: Path) -> "Keys":
        """Reads `<folder>/*.key`, making what is missing; several processes may do so at once."""
        return cls(
            response_id=_secret(folder / "response-id.key"),
            feedback_token={"k1": _secret(folder / "feedback-token-k1.key")},
            feedback_token_id="k1",
            end_user=_secret(folder / "end-user.key"),
            split=_secret(folder / "split.key"),
        )


@dataclass(frozen=True)
class PolicyVerifier:
    """Checks that a policy was published by this installation's trainer."""

    public_key: Ed25519PublicKey

    @classmethod
    def load_or_create(cls, folder: Path) -> "PolicyVerifier":
        return PolicySigner.load_or_create(folder).verifier()

    def holds(self, message: bytes, signature: bytes) -> bool:
        try:
            self.public_key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class PolicySigner:
    """The trainer's Ed25519 key."""

    private_key: Ed25519PrivateKey

    @classmethod
    def load_or_create(cls, folder: Path) -> "PolicySigner":
        return cls(Ed25519PrivateKey.from_private_bytes(_secret(folder / "trainer.key")))

    def sign(self, message: bytes) -> bytes:
        return self.private_key.sign(message)

    def verifier(self) -> PolicyVerifier:
        return PolicyVerifier(self.private_key.public_key())


def _secret(file: Path) -> bytes:
    """The file's 32 bytes; made of random ones if it is missing. The first of several makers wins."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, secrets.token_bytes(_SECRET_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
        draft.unlink()
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    secret = file.read_bytes()
    if len(secret) != _SECRET_BYTES:
        raise DataLoss(f"{file} holds {len(secret)} bytes; a key has {_SECRET_BYTES}")
    return secret
