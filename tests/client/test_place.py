"""Where commands find a service, and how they show themselves to it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from attune.access import Role
from attune.client import Tls
from attune.client.place import Place, place_of
from attune.errors import Unavailable
from attune.ids import DEFAULT_TENANT
from attune.personas.api_keys import KeyStore
from attune.runtime import write_endpoints
from attune.settings import Settings
from attune.tls import ServerTls
from tests.certificates import Authority, Issued
from tests.client import scripted_server
from tests.client.scripted_server import ScriptedChat


def place(data: Path, server: str = "", **sections: Any) -> Place:
    return place_of(Settings.model_validate({"data": data, **sections}), "inference", server)


@pytest.mark.parametrize("hosts", [["attune.example.org"], ["*.example.org"], ["10.1.2.3"], []], ids=str)
async def test_commands_reach_a_ring_with_mutual_tls_whatever_name_its_certificate_has(
    tmp_path: Path, hosts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "certificates")
    server, client = authority.issue("server", hosts), authority.issue("client", ())
    sections = {
        "tls": {"certificate": server.certificate, "key": server.key, "client_ca": authority.certificate},
        "client": {"certificate": client.certificate, "key": client.key},
    }
    store = KeyStore(tmp_path / "access")
    monkeypatch.setenv("ATTUNE_API_KEY", store.create(DEFAULT_TENANT, tuple(Role)))
    tls = ServerTls(server.certificate, server.key, authority.certificate)
    running, address = await scripted_server.start(ScriptedChat(), store, tls)
    write_endpoints(tmp_path, "inference", grpc=int(address.rpartition(":")[2]))
    for where in (place(tmp_path, **sections), place(tmp_path, address, **sections)):
        assert await asyncio.to_thread(text_from, where) == "hello"
        async with where.async_client() as asynchronous:
            assert (await asynchronous.chat("again")).text == "again"
    await running.stop(None)


def text_from(where: Place) -> str:
    with where.client(timeout_seconds=20) as client:
        return client.chat("hello").text


def test_a_ring_without_tls_is_reached_in_plain_text(tmp_path: Path) -> None:
    write_endpoints(tmp_path, "inference", grpc=5)
    found = place(tmp_path, inference={"host": "0.0.0.0"})
    assert (found.address, found.tls) == ("127.0.0.1:5", False)


def test_a_ring_that_is_not_running_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="inference is not running"):
        place(tmp_path)


def test_another_server_is_met_as_the_settings_say(tmp_path: Path) -> None:
    elsewhere = "attune.example.org:443"
    ours = issued(tmp_path)
    files = {"certificate": ours.certificate, "key": ours.key}
    assert place(tmp_path, elsewhere).tls is None
    assert place(tmp_path, elsewhere, tls=files).tls is None
    assert place(tmp_path, elsewhere, client={"plain_text": True}).tls is False
    assert place(tmp_path, elsewhere, client={"ca": "ca.pem", "server_name": "n"}).tls == Tls(
        Path("ca.pem"), server_name="n"
    )
    assert place(tmp_path, elsewhere, client=files).tls == Tls(None, ours.certificate, ours.key)
    assert place(tmp_path, "127.0.0.1:5", tls=files).tls == Tls(ours.certificate, server_name="localhost")


def issued(folder: Path) -> Issued:
    return Authority(folder / "certificates").issue("server")


def test_a_host_without_a_port_is_asked_at_the_usual_one(tmp_path: Path) -> None:
    assert place(tmp_path, "localhost").address == "localhost:50051"
    assert place_of(Settings(data=tmp_path), "aggregator", "::1").address == "[::1]:50052"
    assert place_of(Settings(data=tmp_path), "rollout", "attune.example.org").address == "attune.example.org:50054"
