"""How a client knows its server, and itself to it."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from attune.errors import InvalidInput
from attune.tls import read_certificates, read_key


@dataclass(frozen=True)
class Tls:
    """Files in PEM form, read when the client is made.

    `ca` says whom to trust; without it the well-known authorities that gRPC carries, or those in the file that the
    environment's GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names. A server's own certificate will do. `certificate` and `key`
    are for servers that ask for them. `server_name` is the name in the server's certificate, where it is not the
    address's.
    """

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises InvalidInput or FailedPrecondition for what cannot be used."""
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput("certificate and key go together; give both or neither")
        ca = None if self.ca is None else read_certificates(Path(self.ca), "ca")[0]
        certificate = None if self.certificate is None else read_certificates(Path(self.certificate), "certificate")[0]
        key = None if self.key is None else read_key(Path(self.key), "key")[0]
        return grpc.ssl_channel_credentials(ca, key, certificate)
