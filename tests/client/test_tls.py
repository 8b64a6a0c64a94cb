"""The SDK over TLS and mutual TLS, against attune's real gRPC border; and a key that never leaves in plain text."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from attune.client import AsyncClient, Client, Retry, Tls
from attune.client.channel import Security
from attune.errors import FailedPrecondition, InvalidInput, Unavailable
from attune.tls import ServerTls
from tests.certificates import Authority, Parties
from tests.client import scripted_server
from tests.client.scripted_server import ScriptedChat
from tests.keyed import key_store

ONCE = Retry(attempts=1)


@pytest.fixture
def parties(tmp_path: Path) -> Parties:
    return Parties.at(tmp_path / "certificates")


@contextlib.asynccontextmanager
async def serving(folder: Path, tls: ServerTls | None) -> AsyncIterator[tuple[str, str]]:
    """Address and key of a server."""
    store, api_key = key_store(folder)
    server, address = await scripted_server.start(ScriptedChat(), store, tls)
    yield address, api_key
    await server.stop(None)


async def talk(where: tuple[str, str], tls: Security) -> str:
    """What both kinds of client get, with a stream."""

    def in_a_thread() -> str:
        with Client(where[0], api_key=where[1], tls=tls, timeout_seconds=20, retry=ONCE) as client:
            return client.chat("hello").text

    async with AsyncClient(where[0], api_key=where[1], tls=tls, timeout_seconds=20, retry=ONCE) as client:
        pieces = [piece async for piece in client.stream("a b")]
    return await asyncio.to_thread(in_a_thread) + "|" + "".join(pieces)


async def test_a_client_that_trusts_the_authority_talks(parties: Parties, tmp_path: Path) -> None:
    async with serving(tmp_path, parties.server_tls()) as where:
        assert await talk(where, parties.client_tls()) == "hello|a b "


async def test_the_servers_own_certificate_can_be_trusted_by_itself(parties: Parties, tmp_path: Path) -> None:
    async with serving(tmp_path, parties.server_tls()) as where:
        assert await talk(where, Tls(parties.server.certificate)) == "hello|a b "


async def test_mutual_tls_lets_in_who_has_a_certificate_of_its_authority(parties: Parties, tmp_path: Path) -> None:
    async with serving(tmp_path, parties.server_tls(mutual=True)) as where:
        assert await talk(where, parties.client_tls(mutual=True)) == "hello|a b "


async def test_mutual_tls_lets_in_nobody_else(parties: Parties, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other").issue("stranger", ())
    async with serving(tmp_path, parties.server_tls(mutual=True)) as where:
        for tls in (
            parties.client_tls(),
            Tls(parties.authority.certificate, stranger.certificate, stranger.key),
        ):
            with pytest.raises(Unavailable, match="may want TLS, or a client's certificate"):
                await talk(where, tls)


async def test_a_server_of_another_authority_is_not_talked_to(parties: Parties, tmp_path: Path) -> None:
    async with serving(tmp_path, parties.server_tls()) as where:
        for tls in (Tls(Authority(tmp_path / "other").certificate), True):
            with pytest.raises(Unavailable, match="not of an authority that is trusted here"):
                await talk(where, tls)


async def test_a_server_under_another_name_is_not_talked_to_unless_told(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certificates")
    server = authority.issue("server", ["attune.example.org"])
    async with serving(tmp_path, ServerTls(server.certificate, server.key)) as where:
        with pytest.raises(Unavailable, match="its certificate is for another name"):
            await talk(where, Tls(authority.certificate))
        assert await talk(where, Tls(authority.certificate, server_name="attune.example.org")) == "hello|a b "


async def test_plain_text_against_tls_and_tls_against_plain_text_say_what_is_the_matter(
    parties: Parties, tmp_path: Path
) -> None:
    async with serving(tmp_path / "tls", parties.server_tls()) as where:
        with pytest.raises(Unavailable, match="it may want TLS"):
            await talk(where, None)
    async with serving(tmp_path / "plain", None) as where:
        with pytest.raises(Unavailable, match="it speaks plain text"):
            await talk(where, parties.client_tls())


async def test_a_renewed_certificate_is_shown_to_the_next_client_and_open_streams_go_on(
    parties: Parties, tmp_path: Path
) -> None:
    servicer = ScriptedChat()
    store, api_key = key_store(tmp_path)
    server, address = await scripted_server.start(servicer, store, parties.server_tls())
    async with AsyncClient(address, api_key=api_key, tls=parties.client_tls()) as before:
        stream = before.stream("one !hang")
        pieces = aiter(stream)
        assert await anext(pieces) == "one "
        other = Authority(tmp_path / "other")
        other.issue("server").over(parties.server)
        assert await talk((address, api_key), Tls(other.certificate)) == "hello|a b "
        assert (await before.chat("still here")).text == "still here"
        stream.cancel()
    await server.stop(None)


async def test_a_renewed_client_authority_holds_for_the_next_connection(parties: Parties, tmp_path: Path) -> None:
    async with serving(tmp_path, parties.server_tls(mutual=True)) as where:
        assert await talk(where, parties.client_tls(mutual=True)) == "hello|a b "
        other = Authority(tmp_path / "other", "other authority")
        newcomer = other.issue("newcomer", ())
        trusting = Tls(parties.server.certificate, newcomer.certificate, newcomer.key)
        with pytest.raises(Unavailable):
            await talk(where, trusting)
        parties.authority.certificate.write_bytes(other.certificate.read_bytes())
        assert await talk(where, trusting) == "hello|a b "
        with pytest.raises(Unavailable):
            await talk(where, Tls(parties.server.certificate, parties.client.certificate, parties.client.key))


@pytest.mark.parametrize(("tls", "opening"), [(None, b"\x16\x03\x01"), (True, b"\x16\x03\x01"), (False, b"PRI")])
async def test_to_another_machine_nothing_goes_in_plain_text_unless_the_caller_says_so(
    tls: Security, opening: bytes
) -> None:
    """The bytes that arrive are looked at; the address stands for another machine."""
    arrived: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(await reader.read(3))
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as listening:
        # Not among the loopback addresses, and yet it leads to this machine.
        target = f"0.0.0.0:{listening.sockets[0].getsockname()[1]}"
        async with AsyncClient(target, api_key="ak-secret", tls=tls, timeout_seconds=5, retry=ONCE) as client:
            with pytest.raises(Unavailable):
                await client.chat("hello")
    assert set(arrived) == {opening}


def test_files_that_cannot_be_used_are_said_when_the_client_is_made(parties: Parties, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"ca: .*missing: cannot be read"):
        Client("localhost:1", tls=Tls(tmp_path / "missing"))
    with pytest.raises(FailedPrecondition, match=r"ca: .* holds no certificate"):
        Client("localhost:1", tls=Tls(parties.server.key))
    with pytest.raises(InvalidInput, match="certificate and key go together"):
        Client("localhost:1", tls=Tls(certificate=parties.client.certificate))
    with pytest.raises(InvalidInput, match="without http"):
        Client("https://localhost:1")
