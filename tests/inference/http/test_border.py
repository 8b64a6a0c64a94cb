"""What strangers do to the HTTP port itself."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from attune.access import Caller
from attune.inference.http.app import Limits, build_app
from attune.inference.http.server import HttpServer, bind

PATIENCE_SECONDS = 0.3


@contextlib.asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[int]:
    listening = bind("127.0.0.1", 0)
    server = HttpServer(app, listening, request_seconds=PATIENCE_SECONDS)
    server.start()
    try:
        yield listening.getsockname()[1]
    finally:
        await server.stop()


def plain() -> Starlette:
    return Starlette(routes=[Route("/", lambda request: PlainTextResponse("here"))])


class Broken:
    """An authenticator with a bug that quotes what it was given; or that lets everybody in."""

    def __init__(self, *, bug: bool) -> None:
        self._bug = bug

    def authenticate(self, credential: str | None) -> Caller:
        if self._bug:
            raise LookupError(f"what was sent: {credential}")
        return Caller()


def app(*, bug: bool = False, stall_seconds: float = 30) -> Starlette:
    nothing = None
    limits = Limits(1 << 20, stall_seconds)
    return build_app(nothing, nothing, nothing, Broken(bug=bug), limits=limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: here\r\nx-slow: "])
async def test_who_connects_and_sends_no_whole_request_is_let_go(sent: bytes) -> None:
    async with serving(plain()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_the_second_request_of_a_connection_must_come_whole_too() -> None:
    async with serving(plain()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"here"), 10)
        writer.write(b"GET / HTTP/1.1\r\nhost")
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_a_connection_cannot_become_another_protocol() -> None:
    headers = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    async with serving(plain()) as port, httpx.AsyncClient() as http:
        reply = await http.get(
            f"http://127.0.0.1:{port}/", headers={**headers, "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
        )
    assert (reply.status_code, reply.text) == (200, "here")


@pytest.mark.parametrize("header", [b"x: " + b"y" * 10_000_000, b"x: y\r\n" * 1_000_000])
async def test_headers_without_end_are_refused(header: bytes) -> None:
    async with serving(plain()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n" + header)
        told = b""
        with contextlib.suppress(ConnectionResetError):
            told = await asyncio.wait_for(reader.read(), 10)
        assert told == b"" or told.startswith(b"HTTP/1.1 431 ")
        writer.close()
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"http://127.0.0.1:{port}/", headers={"x": "y" * 50_000})).status_code == 200


async def test_trailers_without_end_end_the_connection() -> None:
    async with serving(app()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /v1/feedback HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
        writer.write(head + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n" + b"x: y\r\n" * 1_000_000)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_a_body_in_many_chunks_is_no_headers() -> None:
    async with serving(app()) as port, httpx.AsyncClient() as http:

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(1000):
                yield b" " * 1000

        reply = await http.post(
            f"http://127.0.0.1:{port}/v1/feedback", content=parts(), headers={"content-type": "application/json"}
        )
        assert (reply.status_code, reply.json()["error"]["message"]) == (400, "the body is not JSON")


async def test_a_body_that_does_not_come_is_refused() -> None:
    async with serving(app(stall_seconds=PATIENCE_SECONDS)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            b"POST /v1/feedback HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
        )
        writer.write(head + b"{")
        told = await asyncio.wait_for(reader.read(), 10)
        assert told.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not come whole within 0.3 s" in told
        writer.close()


async def test_a_bug_is_told_in_openais_shape_and_logged_without_what_was_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(app(bug=True)) as port, httpx.AsyncClient() as http:
        with caplog.at_level(logging.DEBUG):
            reply = await http.get(f"http://127.0.0.1:{port}/v1/models", headers={"authorization": "Bearer planted"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal")
    assert "planted" not in reply.text
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert (record.message, record.error) == ("call failed", "LookupError")  # type: ignore[attr-defined]
    assert "planted" not in str(vars(record))
