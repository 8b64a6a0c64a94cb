"""TLS of everything that listens: certificate, key and client CA from files, which are read again when they change."""

import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from attune import metrics
from attune.addresses import is_loopback
from attune.errors import AttuneError, FailedPrecondition
from attune.settings import TlsSettings

_MOST_FILE_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Material:
    """What the files held at one time, found to be good."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    contexts: "dict[bool, ssl.SSLContext]"  # by whether a client certificate is asked for

    def grpc_configuration(self) -> Any:
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


class ServerTls:
    """How a server proves who it is, and, with a client CA, whom it lets in.

    Each new connection meets what the files hold then; open ones go on. New files that cannot be used (half copied,
    certificate without its key, expired) are reported and looked at again when they change; the last good ones serve.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """Raises FailedPrecondition that names the setting and the file."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._material = self._read()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        given = self._newest()

        def newer() -> Any:
            """gRPC asks at every new connection, in a thread of its own; None: as before."""
            nonlocal given
            newest = self._newest()
            if newest is given:
                return None
            given = newest
            return newest.grpc_configuration()

        return grpc.dynamic_ssl_server_credentials(
            given.grpc_configuration(), newer, require_client_authentication=self._client_ca is not None
        )

    def ssl_context(self, *, ask_clients: bool = True) -> ssl.SSLContext:
        """For asyncio and sockets. `ask_clients` false: nobody needs a client certificate here."""
        return _Renewed.of(lambda: self._newest().contexts[ask_clients])

    def _newest(self) -> _Material:
        with self._lock:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                try:
                    self._material = self._read()
                    logger.info("TLS files were renewed")
                except AttuneError as error:
                    logger.error("TLS files unusable; the last good ones go on", extra={"reason": error.message})
            return self._material

    def _stamp(self) -> tuple[object, ...]:
        return tuple(_stamp(file) for file in (self._certificate, self._key, self._client_ca) if file is not None)

    def _read(self) -> _Material:
        certificate, chain = read_certificates(self._certificate, "tls.certificate")
        key, private = read_key(self._key, "tls.key")
        _check_time(chain[0], f"tls.certificate: {self._certificate}")
        if chain[0].public_key() != private.public_key():
            raise FailedPrecondition(f"tls.key: {self._key} is not the key of {self._certificate} (tls.certificate)")
        client_ca = None
        if self._client_ca is not None:
            client_ca, authorities = read_certificates(self._client_ca, "tls.client_ca")
            _check_time(max(authorities, key=_end), f"tls.client_ca: {self._client_ca}")
        contexts = {ask: self._context(client_ca if ask else None) for ask in (True, False)}
        metrics.TLS_CERTIFICATE_EXPIRY.set(chain[0].not_valid_after_utc.timestamp())
        return _Material(certificate, key, client_ca, contexts)

    def _context(self, client_ca: bytes | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._certificate, self._key)
            if client_ca is not None:
                context.load_verify_locations(cadata=client_ca.decode("ascii", "ignore"))
                context.verify_mode = ssl.CERT_REQUIRED
        except (ssl.SSLError, OSError) as error:
            raise FailedPrecondition(
                f"tls.certificate: OpenSSL does not take {self._certificate} with {self._key}: "
                f"{getattr(error, 'reason', None) or error.strerror}"
            ) from None
        return context


class _Renewed(ssl.SSLContext):
    """A context that begins each connection with the newest one: asyncio and uvicorn keep what they were given."""

    newest: Callable[[], ssl.SSLContext]

    @classmethod
    def of(cls, newest: Callable[[], ssl.SSLContext]) -> "_Renewed":
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context.newest = newest
        return context

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        return self.newest().wrap_bio(*arguments, **options)

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        return self.newest().wrap_socket(*arguments, **options)


def read_certificates(file: Path, setting: str) -> tuple[bytes, Sequence[x509.Certificate]]:
    """The file's bytes and its certificates, at least one. Raises FailedPrecondition that names the setting."""
    data = _bytes(file, setting)
    try:
        return data, x509.load_pem_x509_certificates(data)
    except ValueError:
        raise FailedPrecondition(f"{setting}: {file} holds no certificate in PEM form") from None


def read_key(file: Path, setting: str) -> tuple[bytes, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey]:
    """The file's bytes and its key. Raises FailedPrecondition that names the setting."""
    data = _bytes(file, setting)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise FailedPrecondition(f"{setting}: {file} is locked with a passphrase; give a key without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise FailedPrecondition(f"{setting}: {file} holds no private key in PEM form") from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise FailedPrecondition(f"{setting}: {file} is neither an RSA nor an EC key; gRPC takes no other")
    return data, key


def server_tls(settings: TlsSettings) -> ServerTls | None:
    """None where the settings want none. Raises FailedPrecondition that names the setting and the file."""
    if settings.certificate is None or settings.key is None:
        return None
    return ServerTls(settings.certificate, settings.key, settings.client_ca)


def page_context(tls: ServerTls | None) -> ssl.SSLContext | None:
    """For a metrics page, which asks nobody for a certificate: it holds figures, and no text and no secret."""
    return None if tls is None else tls.ssl_context(ask_clients=False)


def exposure(host: str, tls: object | None) -> str:
    """What is wrong with listening there in plain text; empty when nothing is."""
    if tls is not None or is_loopback(host):
        return ""
    return (
        f"{host} is open to others without TLS: keys, questions and answers cross the network in plain text; "
        "set tls.certificate and tls.key, or put something in front that has TLS"
    )


def _bytes(file: Path, setting: str) -> bytes:
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_FILE_BYTES + 1)
    except OSError as error:
        raise FailedPrecondition(f"{setting}: {file}: cannot be read: {error.strerror}") from None
    if len(content) > _MOST_FILE_BYTES:
        raise FailedPrecondition(f"{setting}: {file}: has more than {_MOST_FILE_BYTES} bytes, which is the limit")
    return content


def _check_time(certificate: x509.Certificate, what: str) -> None:
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc < now:
        raise FailedPrecondition(f"{what} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if certificate.not_valid_before_utc > now:
        raise FailedPrecondition(f"{what} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")


def _end(certificate: x509.Certificate) -> datetime:
    return certificate.not_valid_after_utc


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
