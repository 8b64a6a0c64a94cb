"""The RPC about lineage: for whoever operates a tenant."""

import asyncio
from dataclasses import dataclass
from typing import Any

from attune.access import CALLER
from attune.aggregator.lineage import Lineage
from attune.aggregator.receipt_index import ReceiptIndex
from attune.chat.limits import MAX_ID_CHARACTERS, check_length
from attune.errors import InvalidInput
from attune.v1 import dataset_pb2, dataset_pb2_grpc

MOST_DEPTH = 12
MOST_WIDTH = 50
_DEPTH = 6
_WIDTH = 5


@dataclass(eq=False)
class LineageService(dataset_pb2_grpc.LineageServiceServicer):
    """Answers from the receipts' index alone."""

    index: ReceiptIndex

    async def GetLineage(self, request: dataset_pb2.GetLineageRequest, context: Any) -> dataset_pb2.GetLineageResponse:
        for name, most in (("depth", MOST_DEPTH), ("width", MOST_WIDTH)):
            if getattr(request, name) > most:
                raise InvalidInput(f"{name} is {getattr(request, name)}; at most {most}", field=name)
        if not request.id:
            raise InvalidInput("id is empty", field="id")
        for name in ("id", "to_id"):
            check_length(getattr(request, name), MAX_ID_CHARACTERS, name)
        return dataset_pb2.GetLineageResponse(node=await asyncio.to_thread(self._answer, request, CALLER.get().tenant))

    def _answer(self, request: dataset_pb2.GetLineageRequest, tenant: str) -> dataset_pb2.LineageNode:
        with self.index.reading() as connection:
            lineage = Lineage(connection, tenant)
            start = lineage.find(request.id)
            if request.to_id:
                return lineage.path(start, lineage.find(request.to_id))
            return lineage.tree(start, request.depth or _DEPTH, request.width or _WIDTH)
