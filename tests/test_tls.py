"""What listens with TLS: gRPC, HTTP and the metrics page, with files that are good, bad and renewed."""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from attune import rpc
from attune.errors import FailedPrecondition
from attune.inference.http.server import HttpServer, bind
from attune.metrics_page import fetch_page, serve_metrics
from attune.tls import ServerTls, exposure, page_context, read_certificates
from tests.certificates import Authority, Issued, Parties
from tests.keyed import key_store


@pytest.fixture
def parties(tmp_path: Path) -> Parties:
    return Parties.at(tmp_path / "certificates")


@contextlib.asynccontextmanager
async def http_server(tls: ServerTls) -> AsyncIterator[str]:
    listening = bind("127.0.0.1", 0)
    server = HttpServer(
        Starlette(routes=[Route("/", lambda _: PlainTextResponse("hello"))]), listening, tls.ssl_context()
    )
    server.start()
    yield f"https://localhost:{listening.getsockname()[1]}/"
    await server.stop()


def trusting(authority: Authority, client: Issued | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.certificate)
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    return context


async def get(url: str, context: ssl.SSLContext) -> str:
    async with httpx.AsyncClient(verify=context, timeout=10) as http:
        return (await http.get(url)).text


async def test_http_is_served_over_tls_and_refuses_plain_text(parties: Parties) -> None:
    async with http_server(parties.server_tls()) as url:
        assert await get(url, trusting(parties.authority)) == "hello"
        with pytest.raises(httpx.HTTPError):
            await get(url.replace("https", "http"), trusting(parties.authority))
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await get(url, ssl.create_default_context())


async def test_http_with_a_client_ca_lets_nobody_in_without_its_certificate(parties: Parties, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other").issue("stranger", ())
    async with http_server(parties.server_tls(mutual=True)) as url:
        assert await get(url, trusting(parties.authority, parties.client)) == "hello"
        for client in (None, stranger):
            with pytest.raises(httpx.HTTPError):
                await get(url, trusting(parties.authority, client))


async def test_http_begins_each_connection_with_what_the_files_hold_then(parties: Parties, tmp_path: Path) -> None:
    async with http_server(parties.server_tls(mutual=True)) as url:
        other = Authority(tmp_path / "other", "authority")
        other.issue("server").over(parties.server)
        parties.authority.certificate.write_bytes(other.certificate.read_bytes())
        client = other.issue("client", ())
        assert await get(url, trusting(other, client)) == "hello"
        with pytest.raises(httpx.HTTPError):  # the authority that was trusted before
            await get(url, trusting(other, parties.client))


async def test_a_client_that_never_begins_its_handshake_holds_up_nobody(parties: Parties) -> None:
    async with http_server(parties.server_tls()) as url:
        port = httpx.URL(url).port
        with socket.create_connection(("127.0.0.1", port or 0)):
            assert await get(url, trusting(parties.authority)) == "hello"


@contextlib.contextmanager
def page(tls: ServerTls) -> Iterator[int]:
    port, server, thread = serve_metrics("127.0.0.1", 0, page_context(tls))
    yield port
    server.shutdown()
    thread.join(10)
    server.server_close()


async def test_the_metrics_page_has_tls_and_asks_nobody_for_a_certificate(parties: Parties) -> None:
    with page(parties.server_tls(mutual=True)) as port:
        with socket.create_connection(("127.0.0.1", port)):  # and is held up by nobody
            assert "attune_tls_certificate_expiry_seconds" in await get(
                f"https://localhost:{port}/metrics", trusting(parties.authority)
            )
        text = await asyncio.to_thread(fetch_page, "127.0.0.1", port, tls=True, timeout_seconds=10)
        assert text is not None
        assert await asyncio.to_thread(fetch_page, "127.0.0.1", port, tls=False, timeout_seconds=10) is None


def test_when_the_certificate_ends_is_a_metric(parties: Parties) -> None:
    parties.server_tls()
    ends = REGISTRY.get_sample_value("attune_tls_certificate_expiry_seconds")
    assert ends == parties.server.parsed.not_valid_after_utc.timestamp()


def refusal(certificate: Path, key: Path, client_ca: Path | None = None) -> str:
    with pytest.raises(FailedPrecondition) as refused:
        ServerTls(certificate, key, client_ca)
    return refused.value.message


def test_files_that_cannot_be_used_stop_the_start_with_setting_file_and_reason(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good, other = authority.issue("good"), authority.issue("other")
    old, early = authority.issue("old", days=(-3, -2)), authority.issue("early", days=(2, 3))
    locked = authority.issue("locked", locked=b"open sesame")
    garbage, missing = tmp_path / "garbage", tmp_path / "missing"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    odd = tmp_path / "odd.key"
    odd.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    assert refusal(missing, good.key) == f"tls.certificate: {missing}: cannot be read: No such file or directory"
    assert refusal(good.certificate, missing) == f"tls.key: {missing}: cannot be read: No such file or directory"
    assert refusal(tmp_path, good.key) == f"tls.certificate: {tmp_path}: cannot be read: Is a directory"
    assert refusal(garbage, good.key) == f"tls.certificate: {garbage} holds no certificate in PEM form"
    assert refusal(good.key, good.key) == f"tls.certificate: {good.key} holds no certificate in PEM form"
    assert (
        refusal(good.certificate, good.certificate) == f"tls.key: {good.certificate} holds no private key in PEM form"
    )
    assert refusal(good.certificate, other.key) == (
        f"tls.key: {other.key} is not the key of {good.certificate} (tls.certificate)"
    )
    assert refusal(locked.certificate, locked.key) == (
        f"tls.key: {locked.key} is locked with a passphrase; give a key without one"
    )
    assert refusal(good.certificate, odd) == f"tls.key: {odd} is neither an RSA nor an EC key; gRPC takes no other"
    assert refusal(old.certificate, old.key).startswith(f"tls.certificate: {old.certificate} expired on ")
    assert refusal(early.certificate, early.key).startswith(
        f"tls.certificate: {early.certificate} is not valid before "
    )
    assert refusal(good.certificate, good.key, garbage) == f"tls.client_ca: {garbage} holds no certificate in PEM form"
    assert refusal(good.certificate, good.key, old.certificate).startswith(
        f"tls.client_ca: {old.certificate} expired on"
    )


async def test_a_renewal_that_cannot_be_used_is_reported_and_the_last_good_one_serves(
    parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    async with http_server(parties.server_tls()) as url:
        renewed = parties.authority.issue("renewed", ["localhost", "renewed.example"])
        with caplog.at_level(logging.ERROR):
            parties.server.certificate.write_bytes(renewed.certificate.read_bytes())  # its key is still to come
            for _ in range(3):
                assert await get(url, trusting(parties.authority)) == "hello"
        reported = [record for record in caplog.records if record.name == "attune.tls"]
        assert [record.message for record in reported] == ["TLS files unusable; the last good ones go on"]
        parties.server.key.write_bytes(renewed.key.read_bytes())
        assert "renewed.example" in await asyncio.to_thread(names_of, url, trusting(parties.authority))


def names_of(url: str, context: ssl.SSLContext) -> str:
    where = "localhost", httpx.URL(url).port or 0
    with (
        socket.create_connection(where, timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        return str(tls.getpeercert())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "attune.example.org", ""])
def test_plain_text_that_others_can_reach_is_said(host: str, parties: Parties) -> None:
    assert "plain text" in exposure(host, None)
    assert exposure(host, parties.server_tls()) == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_plain_text_on_this_machine_alone_is_nothing_to_say(host: str) -> None:
    assert exposure(host, None) == ""


async def test_a_server_in_plain_text_on_an_open_address_starts_with_a_warning(
    tmp_path: Path, parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    store, _ = key_store(tmp_path)
    for tls, said in ((None, 1), (parties.server_tls(), 0)):
        caplog.clear()
        server = rpc.Server(store, max_message_bytes=1 << 16)
        server.bind("0.0.0.0", 0, tls)
        assert sum("plain text" in record.message for record in caplog.records) == said
        await server.stop(0)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_who_connects_to_grpc_and_says_nothing_is_let_go(tmp_path: Path, parties: Parties, secure: bool) -> None:
    store, _ = key_store(tmp_path)
    server = rpc.Server(store, max_message_bytes=1 << 16, handshake_seconds=0.2)
    port = server.bind("127.0.0.1", 0, parties.server_tls() if secure else None)
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.wait_for(reader.read(), 20)  # to its end
    writer.close()
    await server.stop(0)


@pytest.mark.parametrize("module", ["attune.rollout.main", "attune.aggregator.main", "attune.cli.main"])
def test_a_process_with_bad_files_does_not_start_and_says_why(module: str, tmp_path: Path, parties: Parties) -> None:
    ended = subprocess.run(
        [sys.executable, "-P", "-m", module, *(["up"] if module == "attune.cli.main" else [])],
        env={
            **os.environ,
            "ATTUNE_DATA": str(tmp_path / "data"),
            "ATTUNE_TLS__CERTIFICATE": str(parties.server.certificate),
            "ATTUNE_TLS__KEY": str(parties.client.key),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert f"tls.key: {parties.client.key} is not the key of {parties.server.certificate}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_certificate_without_end_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match=r"tls\.certificate: /dev/zero: has more than 1048576 bytes"):
        read_certificates(Path("/dev/zero"), "tls.certificate")
