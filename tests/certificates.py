"""Certificates for tests, made in the test."""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from attune.client import Tls
from attune.tls import ServerTls

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path
    parsed: x509.Certificate
    private: ec.EllipticCurvePrivateKey

    def over(self, other: "Issued") -> None:
        """Takes the place of another one's files, as a renewal does."""
        other.key.write_bytes(self.key.read_bytes())
        other.certificate.write_bytes(self.certificate.read_bytes())


class Authority:
    """Signs certificates, into files of its folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.root = self._issue(name, (), days=(-1, 1), above=None, locked=b"")

    @property
    def certificate(self) -> Path:
        return self.root.certificate

    def issue(
        self,
        name: str,
        hosts: Sequence[str] = ("localhost", "127.0.0.1"),
        *,
        days: tuple[float, float] = (-1, 1),
        locked: bytes = b"",
    ) -> Issued:
        """A certificate good from `days[0]` to `days[1]` days from now, its key locked with a passphrase or not."""
        return self._issue(name, hosts, days=days, above=self.root, locked=locked)

    def _issue(
        self, name: str, hosts: Sequence[str], *, days: tuple[float, float], above: Issued | None, locked: bytes
    ) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if above is None else above.parsed.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0] * DAY)
            .not_valid_after(now + days[1] * DAY)
            .add_extension(x509.BasicConstraints(ca=above is None, path_length=None), critical=True)
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False
            )
        certificate = builder.sign(key if above is None else above.private, hashes.SHA256())
        files = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        lock = BestAvailableEncryption(locked) if locked else NoEncryption()
        files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
        return Issued(*files, certificate, key)


@dataclass(frozen=True)
class Parties:
    """A server with mutual TLS or without, and its client."""

    authority: Authority
    server: Issued
    client: Issued

    @classmethod
    def at(cls, folder: Path) -> "Parties":
        authority = Authority(folder)
        return cls(authority, authority.issue("server"), authority.issue("client", ()))

    def server_tls(self, *, mutual: bool = False) -> ServerTls:
        return ServerTls(self.server.certificate, self.server.key, self.authority.certificate if mutual else None)

    def client_tls(self, *, mutual: bool = False) -> Tls:
        if not mutual:
            return Tls(self.authority.certificate)
        return Tls(self.authority.certificate, self.client.certificate, self.client.key)


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
