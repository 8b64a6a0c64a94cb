"""The gRPC server of every service."""

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
from grpc_reflection.v1alpha import reflection

from attune.access import Authenticator
from attune.border import Border
from attune.errors import FailedPrecondition
from attune.tls import ServerTls, exposure

logger = logging.getLogger(__name__)

_Service = TypeVar("_Service")

_LISTENERS = 8
# What gRPC makes both of, whichever is asked for.
_EVERYWHERE = ("0.0.0.0", "::")


class Server:
    """A server that knows callers, finds dead clients, refuses large messages and answers every error by errors.STATUS.

    It is several of gRPC's servers, told the same, that listen on one port; the kernel gives each connection to one of
    them. One by itself takes in a single call at a time, and the event loop has to go around several times for that:
    where many calls come that are only to be refused they would wait for seconds. Must be made in a running event loop.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        *,
        max_message_bytes: int,
        max_streams_per_connection: int = 1024,
        handshake_seconds: float = 20,
    ) -> None:
        options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_concurrent_streams", max_streams_per_connection),
            ("grpc.so_reuseport", 1),
            # Who connects and says nothing is let go: gRPC itself would wait for two minutes.
            ("grpc.server_handshake_timeout_ms", round(handshake_seconds * 1000)),
            # A half-open connection is found within 30 s; clients may ping every 10 s, also without a call.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ]
        border = Border(authenticator)
        self._listeners = [grpc.aio.server(interceptors=[border], options=options) for _ in range(_LISTENERS)]

    def add(self, add_to_server: "Callable[[_Service, grpc.aio.Server], None]", service: _Service) -> None:
        """`add_to_server` is the function that was generated for the service."""
        for listener in self._listeners:
            add_to_server(service, cast("grpc.aio.Server", _Handlers(listener)))

    def add_reflection(self, services: Sequence[str]) -> None:
        """Lets grpcurl and the like list the services and their messages."""
        for listener in self._listeners:
            reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), listener)

    def bind(self, host: str, port: int, tls: ServerTls | None) -> int:
        """The port that it will listen on (0 takes a free one); raises FailedPrecondition when it is taken.

        Without TLS on an address that is open to others it says so in the log: something in front may have TLS.
        """
        if danger := exposure(host, tls):
            logger.warning(danger)
        shown = f"[{host}]" if ":" in host else host
        try:
            if port:
                _check_free(host, port)
            for listener in self._listeners:
                address = f"{shown}:{port}"
                port = (
                    listener.add_insecure_port(address)
                    if tls is None
                    else listener.add_secure_port(address, tls.grpc_credentials())
                )
        except (OSError, RuntimeError):
            raise FailedPrecondition(f"cannot listen on {shown}:{port}: is another server there?") from None
        return port

    async def start(self) -> None:
        for listener in self._listeners:
            await listener.start()
        _let_the_loop_finish()

    async def stop(self, grace_seconds: float) -> None:
        """Takes no more calls; those that run are cut short when the time is over."""
        await asyncio.gather(*(listener.stop(grace_seconds) for listener in self._listeners))


class _Handlers:
    """A listener as generated code is to see it: one that is told of handlers, and not of each method's name.

    For every name that grpc.aio is told it waits apart, and with each call it goes over all that it waits for.
    """

    def __init__(self, listener: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = listener.add_generic_rpc_handlers

    def add_registered_method_handlers(self, *_: Any) -> None:
        """Does nothing."""


def _check_free(host: str, port: int) -> None:
    """Raises OSError when somebody listens there: who shares a port with himself would share it with another attune."""
    hosts = _EVERYWHERE if host in _EVERYWHERE else (host,)
    for family, kind, protocol, _, address in itertools.chain.from_iterable(
        socket.getaddrinfo(each, port, type=socket.SOCK_STREAM) for each in hosts
    ):
        try:
            with socket.socket(family, kind, protocol) as probe:
                # Connections that have ended may still be about.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            # Whatever else is wrong, no IPv6 for example, gRPC may do without.
            if error.errno == errno.EADDRINUSE:
                raise


def _let_the_loop_finish() -> None:
    """Makes this process' other threads wait for a core until the event loop, which calls this, leaves one free.

    gRPC's are woken with every message that is written and with every call. As the kernel has it, they then take the
    core from the loop that woke them: two changes of thread for each token of each stream. A thread of SCHED_BATCH
    takes no core from anybody when it wakes; threads that it starts are like it.
    """
    if sys.platform != "linux":
        return
    # Where this is forbidden all works as well, and costs more.
    with contextlib.suppress(PermissionError, FileNotFoundError):
        for thread in Path("/proc/self/task").iterdir():
            if int(thread.name) != threading.get_native_id():
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))
