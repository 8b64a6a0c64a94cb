"""A service's metrics, as a page that Prometheus and `attune up` read."""

import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from socket import AF_INET, AF_INET6
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer


def serve_metrics(host: str, port: int, tls: ssl.SSLContext | None = None) -> tuple[int, WSGIServer, Thread]:
    """Serves the page at `http(s)://host:port/metrics` from a thread; port 0 takes a free one.

    Returns the port it listens on, the server (`shutdown()` ends it) and its thread.
    """
    kind = type("Pages", (_Pages,), {"address_family": AF_INET6 if ":" in host else AF_INET, "tls": tls})
    server: WSGIServer = make_server(host, port, make_wsgi_app(), kind, handler_class=_Silent)
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return server.server_port, server, thread


def fetch_page(host: str, port: int, *, tls: bool, timeout_seconds: float) -> str | None:
    """The page of a service on this machine; None when it does not come in time.

    Whose certificate it is is not asked: nothing secret is sent, and it names the service as others reach it.
    """
    connection = (
        HTTPSConnection(host, port, timeout=timeout_seconds, context=_unverified())
        if tls
        else HTTPConnection(host, port, timeout=timeout_seconds)
    )
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode(errors="replace")
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


class _Pages(ThreadingWSGIServer):
    """prometheus_client's own server takes a certificate once and for all; this one each time as it is."""

    tls: ssl.SSLContext | None = None

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self.tls is not None:
            # The handshake is for the thread that reads: a client that never begins one holds up nobody.
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up, or speaks no TLS, is no event of the service's."""


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """No access log."""


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
