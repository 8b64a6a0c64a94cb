"""uvicorn within a running event loop, with TLS where there is a context for it."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from attune.errors import FailedPrecondition

_BACKLOG = 1024
_REQUEST_SECONDS = 20.0
# Of a request's line, headers, chunk sizes and trailers together.
_MOST_BESIDE_BODY_BYTES = 128 << 10
_HEADERS_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def bind(host: str, port: int) -> socket.socket:
    """A listening socket (0 takes a free port); raises FailedPrecondition when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise FailedPrecondition(f"cannot listen on {host}:{port} for HTTP: is another server there?") from None
    listening.setblocking(False)
    return listening


class HttpServer:
    """Serves until `stop`; signals are the process's to handle.

    Who connects and has not sent a request's headers within `request_seconds` is let go; so is who sends headers
    without end.
    """

    def __init__(
        self,
        app: Starlette,
        listening: socket.socket,
        tls: ssl.SSLContext | None = None,
        *,
        request_seconds: float = _REQUEST_SECONDS,
    ) -> None:
        # Anybody can send what is no HTTP, and fill the disk with lines that say so.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        config = uvicorn.Config(
            app,
            http=type("Impatient", (_Impatient,), {"request_seconds": request_seconds}),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=75,
            ssl_context_factory=None if tls is None else lambda *_: tls,
        )
        self._server = _Server(config)
        self._listening = listening
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listening]))

    async def stop(self) -> None:
        """Closes what is idle; what runs has been ended or has ended by then."""
        if self._serving is None:
            self._listening.close()
            return
        self._server.should_exit = self._server.force_exit = True
        await self._serving


class _Impatient(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for ever for headers, and takes any number of them."""

    request_seconds: float
    _letting_go: asyncio.TimerHandle | None = None
    _beside_body_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._beside_body_bytes += len(data)
        super().data_received(data)
        if self._beside_body_bytes > _MOST_BESIDE_BODY_BYTES:
            self._refuse()
        elif self._waits():
            self._watch()
        else:
            self._unwatch()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._beside_body_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._beside_body_bytes -= len(body)
        super().on_body(body)

    def _refuse(self) -> None:
        if not self._waits():  # in the middle of a body: what is answered is that request's to say
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.write(_HEADERS_TOO_LARGE)
            self.transport.close()

    def _waits(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if self._letting_go is None:
            self._letting_go = self.loop.call_later(self.request_seconds, self._let_go)

    def _unwatch(self) -> None:
        if self._letting_go is not None:
            self._letting_go.cancel()
            self._letting_go = None

    def _let_go(self) -> None:
        self._letting_go = None
        if self._waits():
            self.transport.abort()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
