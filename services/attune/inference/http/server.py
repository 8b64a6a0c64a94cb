"""uvicorn within a running event loop, with TLS where there is a context for it."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from attune.errors import FailedPrecondition

_BACKLOG = 1024


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
    """Serves until `stop`; signals are the process's to handle."""

    def __init__(self, app: Starlette, listening: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        config = uvicorn.Config(
            app,
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


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
