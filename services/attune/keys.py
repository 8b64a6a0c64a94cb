"""The installation's secrets: made once, kept in files that only their owner may read."""

import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from attune import secret_files
from attune.errors import DataLoss
from attune.signing import SECRET_BYTES, SigningKeys


@dataclass(frozen=True)
class Keys:
    """What the services sign ids and tokens with, and two secrets of 32 random bytes that never change."""

    signing: SigningKeys
    end_user: bytes
    split: bytes

    @classmethod
    def load_or_create(cls, folder: Path) -> "Keys":
        """Reads what the folder holds, making what is missing; several processes may do so at once."""
        return cls(
            signing=SigningKeys(folder),
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
    """The file's 32 bytes; made of random ones if it is missing."""
    if not file.exists():
        secret_files.create(file, secrets.token_bytes(SECRET_BYTES))
    secret = file.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise DataLoss(f"{file} holds {len(secret)} bytes; a key has {SECRET_BYTES}")
    return secret
