"""ErasureService: asks for a person to be forgotten, and says how far that is."""

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import Any

from attune.access import CALLER
from attune.chat.limits import MAX_END_USER_CHARACTERS, MAX_ID_CHARACTERS, check_length
from attune.clock import now_unix_ms
from attune.erasures import CERTIFICATE, REQUEST, STATE, Erasures
from attune.errors import InvalidInput, NotFound
from attune.ids import hash_end_user
from attune.v1 import dataset_pb2, dataset_pb2_grpc

logger = logging.getLogger(__name__)

_MOST_LISTED = 200


@dataclass(eq=False)
class ErasureService(dataset_pb2_grpc.ErasureServiceServicer):
    """Writes the request and reads how far it is; the work is the eraser's."""

    erasures: Erasures
    end_user_key: bytes

    async def EraseUser(self, request: dataset_pb2.EraseUserRequest, context: Any) -> dataset_pb2.Erasure:
        if not request.end_user_id:
            raise InvalidInput("end_user_id is empty", field="end_user_id")
        check_length(request.end_user_id, MAX_END_USER_CHARACTERS, "end_user_id")
        tenant = CALLER.get().tenant
        person = hash_end_user(tenant, request.end_user_id, self.end_user_key)
        asked = await asyncio.to_thread(self.erasures.ask, tenant, person, now_unix_ms())
        logger.info("erasure asked for", extra={"erasure_id": asked.erasure_id})
        return await asyncio.to_thread(self._erasure, asked.erasure_id, tenant)

    async def GetErasure(self, request: dataset_pb2.GetErasureRequest, context: Any) -> dataset_pb2.Erasure:
        check_length(request.erasure_id, MAX_ID_CHARACTERS, "erasure_id")
        return await asyncio.to_thread(self._erasure, request.erasure_id, CALLER.get().tenant)

    async def ListErasures(
        self, request: dataset_pb2.ListErasuresRequest, context: Any
    ) -> dataset_pb2.ListErasuresResponse:
        found = await asyncio.to_thread(self._all, CALLER.get().tenant)
        return dataset_pb2.ListErasuresResponse(erasures=found)

    def _all(self, tenant: str) -> list[dataset_pb2.Erasure]:
        found = []
        for erasure_id in self.erasures.ids():
            try:
                found.append(self._erasure(erasure_id, tenant))
            except NotFound:
                continue
        return sorted(found, key=lambda erasure: erasure.requested_unix_ms, reverse=True)[:_MOST_LISTED]

    def _erasure(self, erasure_id: str, tenant: str) -> dataset_pb2.Erasure:
        self.erasures.check(erasure_id, tenant)
        certificate = self.erasures.read(erasure_id, CERTIFICATE)
        if certificate is not None:
            return dataset_pb2.Erasure(
                erasure_id=erasure_id,
                requested_unix_ms=certificate["requested_unix_ms"],
                completed_unix_ms=certificate["completed_unix_ms"],
                steps=_steps(certificate["removed"]),
                policy_ids=certificate["policies_withdrawn"],
                certificate_json=json.dumps(certificate, indent=1, sort_keys=True),
            )
        request = self.erasures.read(erasure_id, REQUEST)
        if request is None:  # it was done since
            return self._erasure(erasure_id, tenant)
        state = self.erasures.read(erasure_id, STATE) or {"done": {}, "waiting": "", "policies": []}
        return dataset_pb2.Erasure(
            erasure_id=erasure_id,
            requested_unix_ms=request["requested_unix_ms"],
            steps=_steps(state["done"]),
            waiting_for=state["waiting"],
            policy_ids=state["policies"],
        )


def _steps(done: dict[str, dict[str, int]]) -> list[dataset_pb2.ErasureStep]:
    return [dataset_pb2.ErasureStep(store=store, removed=removed) for store, removed in done.items()]
