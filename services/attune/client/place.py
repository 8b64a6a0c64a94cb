"""Where attune's own commands find a service, and how they show themselves to it."""

from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from cryptography import x509
from cryptography.x509.oid import NameOID

from attune import addresses
from attune.client.channel import Security, open_async_channel, open_channel
from attune.client.chat import AsyncClient, Client
from attune.client.retry import PATIENT, Retry
from attune.client.tls import Tls
from attune.personas.api_keys import local_api_key
from attune.runtime import read_port
from attune.settings import Settings
from attune.tls import read_certificates


@dataclass(frozen=True)
class Place:
    """An address, how to connect to it, and the key to present."""

    address: str
    tls: Security
    api_key: str

    def client(self, *, timeout_seconds: float = 60, retry: Retry = PATIENT) -> Client:
        return Client(self.address, api_key=self.api_key, tls=self.tls, timeout_seconds=timeout_seconds, retry=retry)

    def channel(self) -> grpc.Channel:
        return open_channel(self.address, self.tls)

    def async_client(self, *, timeout_seconds: float = 60, retry: Retry = PATIENT) -> AsyncClient:
        return AsyncClient(
            self.address, api_key=self.api_key, tls=self.tls, timeout_seconds=timeout_seconds, retry=retry
        )

    def async_channel(self) -> grpc.aio.Channel:
        return open_async_channel(self.address, self.tls)


def place_of(settings: Settings, service: str, server: str = "") -> Place:
    """Of a service of the data folder's ring, or of the server at `host:port`, or on `host` at the usual port.

    The ring's own certificate is trusted as it is, under the name that stands in it: the settings name its file.
    Raises Unavailable when the ring is not running.
    """
    api_key = local_api_key(settings.data)
    section = getattr(settings, service)
    if not server:
        port = read_port(settings.data, service, "grpc")
        return Place(addresses.join(section.host, port), _ours(settings), api_key)
    server = addresses.with_port(server, type(section).model_fields["grpc_port"].default)
    local = addresses.stays_here(server) and settings.tls.certificate is not None
    return Place(server, _ours(settings) if local else _theirs(settings), api_key)


def _ours(settings: Settings) -> Security:
    client, certificate = settings.client, settings.tls.certificate
    if certificate is None:
        return False
    return Tls(client.ca or certificate, client.certificate, client.key, client.server_name or _name_in(certificate))


def _theirs(settings: Settings) -> Security:
    client = settings.client
    if client.plain_text:
        return False
    if client.ca or client.certificate or client.server_name:
        return Tls(client.ca, client.certificate, client.key, client.server_name)
    return None


def _name_in(file: Path) -> str:
    """A name that the certificate holds for; of an old one, which lists none, its common name."""
    leaf = read_certificates(file, "tls.certificate")[1][0]
    try:
        listed = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = [str(name.value) for name in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    else:
        addresses_listed = listed.get_values_for_type(x509.IPAddress)
        names = [*listed.get_values_for_type(x509.DNSName), *map(str, addresses_listed)]
    return names[0].replace("*", "attune") if names else ""
