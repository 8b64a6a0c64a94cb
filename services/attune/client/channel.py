"""Channels to one server: in plain text on this machine, with TLS to any other, unless the caller says otherwise."""

import grpc
import grpc.aio

from attune.addresses import stays_here
from attune.client.tls import Tls
from attune.errors import InvalidInput

Security = Tls | bool | None
"""`None`: plain text on this machine, TLS elsewhere. True: TLS. False: plain text, wherever. A `Tls`: as it says."""

_Options = tuple[tuple[str, int | str], ...]

_OPTIONS: _Options = (
    ("grpc.max_receive_message_length", 1 << 26),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A server that was started anew is found within moments; gRPC's own pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


def open_channel(address: str, tls: Security = None) -> grpc.Channel:
    """For threads. Nothing is sent yet. Raises an AttuneError for what cannot be used."""
    credentials, options = _how(address, tls)
    if credentials is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=options)


def open_async_channel(address: str, tls: Security = None) -> grpc.aio.Channel:
    """For the running event loop. Nothing is sent yet. Raises an AttuneError for what cannot be used."""
    credentials, options = _how(address, tls)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def _how(address: str, tls: Security) -> tuple[grpc.ChannelCredentials | None, _Options]:
    """Credentials, None for plain text, and options."""
    if address.partition("://")[0].lower() in ("http", "https"):
        raise InvalidInput(f"the address is {address}; it must be HOST:PORT of gRPC, without http", field="address")
    here = stays_here(address)
    # A proxy of the environment's would carry what is meant for this machine to another one.
    options = (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if here else _OPTIONS
    if tls is False or (tls is None and here):
        return None, options
    how = tls if isinstance(tls, Tls) else Tls()
    if how.server_name:
        options = (*options, ("grpc.ssl_target_name_override", how.server_name))
    return how.credentials(), options
