"""Asking for it: over the wire, and from the command line of a running aggregator."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from attune import rpc
from attune.access import Role
from attune.aggregator.privacy.service import ErasureService
from attune.erasures import Erasures
from attune.eventlog.refused import RefusedRecords
from attune.ids import hash_end_user
from attune.inference.erasing import Forgetting
from attune.inference.idempotency import Idempotency
from attune.keys import Keys
from attune.personas.api_keys import KeyStore
from attune.v1 import dataset_pb2, dataset_pb2_grpc
from tests.aggregator.plant import Plant
from tests.aggregator.test_main import start, stop
from tests.eventlog.waiting import eventually
from tests.keyed import metadata
from tests.lake.events import response_event, thumb_event


class Counter:
    """The service, and keys of two tenants."""

    def __init__(self, folder: Path) -> None:
        self.erasures = Erasures(folder / "erasures")
        self.access = KeyStore(folder / "access")
        self.key, self.other = (self.access.create(tenant, (Role.OPERATE,)) for tenant in ("default", "acme"))
        self.stub: Any = None

    async def ask(self, method: str, key: str | None = None, **fields: str) -> Any:
        request = getattr(dataset_pb2, f"{method}Request")(**fields)
        return await getattr(self.stub, method)(request, timeout=30, metadata=metadata(key or self.key))

    async def refused(self, method: str, key: str | None = None, **fields: str) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await self.ask(method, key, **fields)
        return failure.value.code().name


@pytest_asyncio.fixture
async def counter(tmp_path: Path) -> AsyncIterator[Counter]:
    opened = Counter(tmp_path)
    server = rpc.Server(opened.access, max_message_bytes=1 << 16)
    service = ErasureService(opened.erasures, b"k" * 32)
    server.add(dataset_pb2_grpc.add_ErasureServiceServicer_to_server, service)
    port = server.bind("127.0.0.1", 0, None)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        opened.stub = dataset_pb2_grpc.ErasureServiceStub(channel)
        yield opened
    await server.stop(None)


async def test_a_request_is_kept_by_pseudonym_and_asked_again_is_the_same(counter: Counter) -> None:
    first = await counter.ask("EraseUser", end_user_id="jane")
    again = await counter.ask("EraseUser", end_user_id="jane")
    john = await counter.ask("EraseUser", end_user_id="john")
    assert first.erasure_id == again.erasure_id != john.erasure_id
    (kept, _) = counter.erasures.running()
    assert kept.person == hash_end_user("default", "jane", b"k" * 32)
    assert (await counter.ask("GetErasure", erasure_id=first.erasure_id)).erasure_id == first.erasure_id
    listed = (await counter.ask("ListErasures")).erasures
    assert {erasure.erasure_id for erasure in listed} == {first.erasure_id, john.erasure_id}


async def test_another_tenants_erasure_is_as_one_that_does_not_exist(counter: Counter) -> None:
    erasure = await counter.ask("EraseUser", end_user_id="jane")
    assert await counter.refused("GetErasure", counter.other, erasure_id=erasure.erasure_id) == "NOT_FOUND"
    assert await counter.refused("GetErasure", erasure_id="e-0000000000000000") == "NOT_FOUND"
    assert not (await counter.ask("ListErasures", counter.other)).erasures
    same_name = await counter.ask("EraseUser", counter.other, end_user_id="jane")
    assert same_name.erasure_id != erasure.erasure_id


@pytest.mark.parametrize("erasure_id", ["../../keys", "/etc/passwd", "e-\0", "."])
async def test_an_id_that_is_a_path_leads_nowhere(counter: Counter, erasure_id: str) -> None:
    assert await counter.refused("GetErasure", erasure_id=erasure_id) == "NOT_FOUND"


async def test_bad_input_and_other_roles_are_refused_and_change_nothing(counter: Counter) -> None:
    assert await counter.refused("EraseUser", end_user_id="") == "INVALID_ARGUMENT"
    assert await counter.refused("EraseUser", end_user_id="x" * 257) == "INVALID_ARGUMENT"
    assert await counter.refused("GetErasure", erasure_id="x" * 129) == "INVALID_ARGUMENT"
    chat = counter.access.create("default", (Role.CHAT, Role.FEEDBACK, Role.REVIEW))
    for method, fields in (
        ("EraseUser", {"end_user_id": "a"}),
        ("GetErasure", {"erasure_id": "e"}),
        ("ListErasures", {}),
    ):
        assert await counter.refused(method, chat, **fields) == "PERMISSION_DENIED"
    assert not counter.erasures.ids()


async def test_from_the_command_line_a_person_is_forgotten_while_the_aggregator_runs(tmp_path: Path) -> None:
    process = start(tmp_path)
    idempotency = Idempotency(tmp_path / "idempotency.sqlite", keep_hours=1, most_answers=10)
    try:
        plant = Plant(tmp_path)
        keys = Keys.load_or_create(tmp_path / "keys")
        jane = hash_end_user("default", "jane", keys.end_user)
        plant.append(*[response_event(number) for number in range(12)], response_event(20, end_user=jane))
        plant.append(*[thumb_event(number, number) for number in range(12)], thumb_event(20, 20, end_user=jane))
        eventually(lambda: len(plant.ids("feedback")) == 13, 60)
        forgetting = Forgetting(
            Erasures(tmp_path / "erasures"), plant.log, idempotency, RefusedRecords(tmp_path / "spool")
        )
        command = [sys.executable, "-P", "-m", "attune.cli.main", "erase", "--data", str(tmp_path)]
        certificate = tmp_path / "certificate.json"
        asking = await asyncio.create_subprocess_exec(
            *command, "--user", "jane", "--certificate", str(certificate),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        ending = asyncio.Event()
        serving = asyncio.create_task(forgetting.run(ending))
        said, steps = await asyncio.wait_for(asking.communicate(), 120)
        ending.set()
        await serving
        assert asking.returncode == 0, steps
        assert b"done: lake" in steps
        assert b"done; the certificate's SHA-256 is" in said
        assert json.loads(certificate.read_text())["removed"]["lake"]["rows"] == 2
        assert plant.ids("responses") == sorted(f"response-{number}" for number in range(12))
        listing = await asyncio.create_subprocess_exec(*command, "--list", stdout=subprocess.PIPE)
        assert b"done" in (await asyncio.wait_for(listing.communicate(), 60))[0]
        assert stop(process) == 0
        plant.close()
    finally:
        idempotency.close()
        if process.poll() is None:
            process.kill()
            process.wait()
