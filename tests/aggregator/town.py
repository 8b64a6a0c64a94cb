"""A small installation without an engine: imports, feedback, receipts and export on one port, and what lies between."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from attune import rpc
from attune.access import Role
from attune.aggregator.receipt_index import ReceiptIndex
from attune.aggregator.service import ExportService, ReceiptService
from attune.client import Client
from attune.client.exports import lines_of
from attune.client.imports import read_lines
from attune.inference.feedback import Feedback
from attune.inference.feedback_rpc import FeedbackService, ImportService
from attune.inference.idempotency import Idempotency
from attune.inference.imports import Imports
from attune.keys import Keys, PolicyVerifier
from attune.personas.api_keys import KeyStore
from attune.registry.policies import Registry
from attune.v1 import dataset_pb2, dataset_pb2_grpc, feedback_pb2_grpc
from tests.aggregator.plant import Plant
from tests.keyed import metadata
from tests.persona_files import stored

PERSONAS = dict.fromkeys(("concierge", "tutor"), 'system_prompt = "Answer."')


class Town:
    """Open it with `Town.open`."""

    def __init__(self, plant: Plant, port: int, access: KeyStore, index: ReceiptIndex) -> None:
        self.plant = plant
        self.port = port
        self.access = access
        self.index = index
        self.key = access.create("default", tuple(Role))

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path) -> AsyncIterator["Town"]:
        plant = Plant(folder)
        access = KeyStore(folder / "access")
        keys = Keys.load_or_create(folder / "keys")
        idempotency = Idempotency(folder / "idempotency.sqlite", keep_hours=1, most_answers=1000)
        personas = stored(folder, PERSONAS, "concierge")
        server = rpc.Server(access, max_message_bytes=1 << 20)
        imports = ImportService(Imports(plant.log, keys, personas, idempotency))
        feedback = FeedbackService(Feedback(plant.log, keys, personas, idempotency))
        server.add(feedback_pb2_grpc.add_ImportServiceServicer_to_server, imports)
        server.add(feedback_pb2_grpc.add_FeedbackServiceServicer_to_server, feedback)
        registry = Registry(folder / "registry", PolicyVerifier.load_or_create(folder / "keys"))
        index = ReceiptIndex(folder, folder / "lake", registry)
        server.add(dataset_pb2_grpc.add_ReceiptServiceServicer_to_server, ReceiptService(index, keys.signing))
        server.add(dataset_pb2_grpc.add_ExportServiceServicer_to_server, ExportService(folder / "lake"))
        port = server.bind("127.0.0.1", 0, None)
        await server.start()
        try:
            yield cls(plant, port, access, index)
        finally:
            await server.stop(None)
            idempotency.close()
            plant.close()

    async def take(self, lines: Iterable[str], form: str = "attune") -> None:
        """As `attune feedback import` does."""

        def send() -> None:
            with Client(f"127.0.0.1:{self.port}", api_key=self.key) as client:
                records = []
                for line in read_lines((text.encode() for text in lines), form, name="f", persona=""):
                    assert line.record is not None, line.reason
                    records.append(line.record)
                said = []
                for record, result in zip(
                    records, client.import_all(record.request for record in records), strict=True
                ):
                    assert result.HasField("accepted"), result.refused
                    said += record.feedback(result.accepted.response_ids)
                for told in client.submit_all(said):
                    assert told.HasField("accepted"), told.refused

        await asyncio.to_thread(send)
        self.settle()

    def settle(self) -> None:
        """What is in the log comes into the lake, and into the receipts' index."""
        self.plant.ingest_all()
        self.index.update(threading.Event())

    async def parts(self, *, key: str = "", **wanted: Any) -> list[dataset_pb2.ExportRecordsResponse]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stub: Any = dataset_pb2_grpc.ExportServiceStub(channel)
            request = dataset_pb2.ExportRecordsRequest(**wanted)
            call = stub.ExportRecords(request, timeout=60, metadata=metadata(key or self.key))
            return [part async for part in call]

    async def lines(self, form: str = "attune", **wanted: Any) -> list[str]:
        parts = await self.parts(**wanted)
        return [line for part in parts if part.HasField("record") for line in lines_of(part.record, form)]

    async def summary(self, **wanted: Any) -> dict[str, Any]:
        first, *records, last = await self.parts(**wanted)
        assert first.start.records == len(records) == last.summary.records
        summary = last.summary
        return {"records": summary.records, "feedback": summary.feedback, **summary.left_out}
