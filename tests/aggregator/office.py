"""What operators ask an aggregator, on a data folder that a test fills: a server in a thread, as commands find it."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attune import rpc
from attune.access import Role
from attune.aggregator.build import BuildRules
from attune.aggregator.dataset_service import DatasetService
from attune.aggregator.datasets import Workshop
from attune.aggregator.lake_service import LakeService
from attune.aggregator.lineage_service import LineageService
from attune.aggregator.log_service import LogService
from attune.aggregator.privacy.scrubber import Scrubber
from attune.aggregator.receipt_index import ReceiptIndex
from attune.eventlog.follower import SpoolFollower
from attune.keys import Keys, PolicyVerifier
from attune.personas import Personas, PersonaVersions
from attune.personas.api_keys import KeyStore
from attune.registry.policies import Registry
from attune.runtime import write_endpoints
from attune.settings import Settings
from attune.v1 import dataset_pb2_grpc
from tests.persona_files import apply

WINDOW_DAYS = 3650.0  # the events of tests are of a time long ago


class Office:
    """The commands of this machine come in with a key of the tenant `default`."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.access = KeyStore(data / "access")
        self.key = self.access.create("default", (Role.OPERATE,))
        (data / "access" / "development.key").write_text(self.key)
        apply(data, "concierge", 'system_prompt = "Answer."')
        self.port = 0
        verifier = PolicyVerifier.load_or_create(data / "keys")
        self.index = ReceiptIndex(data, data / "lake", Registry(data / "registry", verifier))

    def add_services(self, server: Any) -> None:
        settings = Settings()
        rules = BuildRules(1, WINDOW_DAYS, settings.aggregator.heldout_share)
        keys = Keys.load_or_create(self.data / "keys")
        lake = self.data / "lake"
        workshop = Workshop(self.data / "datasets", lake, rules, keys.split)
        personas = Personas(PersonaVersions(self.data / "personas"), "concierge")
        server.add(dataset_pb2_grpc.add_DatasetServiceServicer_to_server, DatasetService(workshop, personas))
        server.add(dataset_pb2_grpc.add_LineageServiceServicer_to_server, LineageService(self.index))
        looking_on = LogService(lambda: SpoolFollower(self.data / "spool"), Scrubber.from_settings(settings.privacy))
        server.add(dataset_pb2_grpc.add_LogServiceServicer_to_server, looking_on)
        server.add(dataset_pb2_grpc.add_LakeServiceServicer_to_server, LakeService(lake, 6))


@contextlib.contextmanager
def open_office(data: Path) -> Iterator[Office]:
    """Until the block ends; the port stands where commands look for it."""
    office = Office(data)
    started = threading.Event()
    ways_out: list[Callable[[], object]] = []

    async def serve() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        ways_out.append(lambda: loop.call_soon_threadsafe(stopping.set))
        server = rpc.Server(office.access, max_message_bytes=1 << 16)
        office.add_services(server)
        office.port = server.bind("127.0.0.1", 0, None)
        await server.start()
        write_endpoints(data, "aggregator", grpc=office.port)
        started.set()
        await stopping.wait()
        await server.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(30)
        yield office
    finally:
        for leave in ways_out:
            leave()
        thread.join(30)
