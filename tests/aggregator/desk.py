"""A plant with the receipts' desk: index, server, and keys of two tenants."""

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc

from attune import rpc
from attune.access import Role
from attune.aggregator.lineage_service import LineageService
from attune.aggregator.receipt_index import ReceiptIndex
from attune.aggregator.service import ReceiptService
from attune.keys import PolicySigner
from attune.personas.api_keys import KeyStore
from attune.registry.policies import Registry
from attune.signing import SigningKeys
from attune.v1 import dataset_pb2, dataset_pb2_grpc, feedback_pb2
from tests.aggregator.plant import Plant
from tests.keyed import metadata
from tests.registry.adapters import manifest_of, verdict_of, write_adapter


class Desk:
    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        self.signer = PolicySigner.load_or_create(plant.folder / "keys")
        self.signing = SigningKeys(plant.folder / "keys")
        self.access = KeyStore(plant.folder / "access")
        self.registry = Registry(plant.folder / "registry", self.signer.verifier())
        self.index = ReceiptIndex(plant.folder, plant.lake.place, self.registry)
        self.key = self.access.create("default", (Role.FEEDBACK,))
        self.stub: Any = None
        self.lineage: Any = None
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, plant: Plant) -> AsyncIterator["Desk"]:
        desk = cls(plant)
        server = rpc.Server(desk.access, max_message_bytes=1 << 16)
        server.add(dataset_pb2_grpc.add_ReceiptServiceServicer_to_server, ReceiptService(desk.index, desk.signing))
        server.add(dataset_pb2_grpc.add_LineageServiceServicer_to_server, LineageService(desk.index))
        desk.port = server.bind("127.0.0.1", 0, None)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{desk.port}") as channel:
            desk.stub = dataset_pb2_grpc.ReceiptServiceStub(channel)
            desk.lineage = dataset_pb2_grpc.LineageServiceStub(channel)
            yield desk
        await server.stop(None)

    def update(self) -> None:
        """Everything that is in the log comes into the lake, and from there into the index."""
        self.plant.ingest_all()
        self.index.update(threading.Event())

    def response_id(self, tenant: str = "default") -> str:
        return self.signing.new_response_id(tenant)

    def token(self, response_id: str, end_user: str) -> str:
        handle = feedback_pb2.FeedbackHandle(
            tenant="default",
            response_id=response_id,
            end_user=end_user,
            expires_unix_seconds=int(time.time()) + 60,
        )
        return self.signing.sign_token(handle)

    def publish(self, dataset_id: str, passed: bool | None = True, parent: str = "") -> str:
        policy_id = self.registry.claim("default", "concierge")
        manifest = replace(manifest_of(policy_id), dataset_ids=(dataset_id,), parent_policy_id=parent)
        self.registry.publish(manifest, write_adapter(self.plant.folder / "work" / policy_id), self.signer)
        if passed is not None:
            self.judge(policy_id, passed)
        return policy_id

    def judge(self, policy_id: str, passed: bool) -> None:
        self.registry.write_verdict(verdict_of(policy_id, passed), self.signer)

    async def ask(self, *, key: str | None = None, **subject: str) -> dataset_pb2.GetReceiptsResponse:
        """With the tenant's key; an empty one is none."""
        key = self.key if key is None else key
        request = dataset_pb2.GetReceiptsRequest(**subject)
        answer: dataset_pb2.GetReceiptsResponse = await self.stub.GetReceipts(
            request, timeout=30, metadata=metadata(key) if key else None
        )
        return answer

    async def receipt(self, feedback_id: str) -> dataset_pb2.Receipt:
        (receipt,) = (await self.ask(feedback_id=feedback_id)).receipts
        return receipt

    async def refused(self, *, key: str | None = None, **subject: str) -> tuple[str, str]:
        try:
            await self.ask(key=key, **subject)
        except grpc.aio.AioRpcError as failure:
            return failure.code().name, failure.details() or ""
        raise AssertionError("it was answered")
