"""The aggregator's RPCs: who may ask for what."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass, field
from typing import Any

from attune.access import CALLER, Caller, Role
from attune.aggregator.export import Wanted, export
from attune.aggregator.reasons import sentence
from attune.aggregator.receipt_index import ReceiptIndex
from attune.aggregator.receipts import Question, answer
from attune.chat.limits import MAX_ID_CHARACTERS, check_length
from attune.clock import now_unix_ms
from attune.errors import InvalidInput, NotFound, PermissionDenied, ResourceExhausted, Unauthenticated
from attune.ids import check_name
from attune.lake.place import Place
from attune.signing import SigningKeys
from attune.v1 import dataset_pb2, dataset_pb2_grpc

MAX_TOKEN_CHARACTERS = 4096
MOST_EXPORTS = 2


@dataclass(eq=False)
class ReceiptService(dataset_pb2_grpc.ReceiptServiceServicer):
    """Answers from the index alone."""

    index: ReceiptIndex
    signing: SigningKeys

    async def GetReceipts(
        self, request: dataset_pb2.GetReceiptsRequest, context: Any
    ) -> dataset_pb2.GetReceiptsResponse:
        question = self._question(request, CALLER.get())
        found = await asyncio.to_thread(self._answer, question)
        if not question.response_id and not found.receipts:
            raise NotFound(
                "no such feedback; what was given a moment ago may not be in the lake yet",
                field=request.WhichOneof("subject"),
            )
        return found

    def _answer(self, question: Question) -> dataset_pb2.GetReceiptsResponse:
        with self.index.reading() as connection:
            return answer(connection, question, sentence, now_unix_ms())

    def _question(self, request: dataset_pb2.GetReceiptsRequest, caller: Caller) -> Question:
        subject = request.WhichOneof("subject")
        if subject is None:
            raise InvalidInput(
                "nothing says whose receipts: set feedback_id, client_feedback_id, response_id or feedback_token",
                field="feedback_id",
            )
        if subject == "feedback_token":
            return self._by_token(request.feedback_token)
        if not caller.key_id:
            raise Unauthenticated("without a feedback token an API key is needed: authorization: Bearer ak-...")
        caller.require(Role.FEEDBACK, Role.REVIEW, Role.OPERATE)
        text = getattr(request, subject)
        if not text:
            raise InvalidInput(f"{subject} is empty", field=subject)
        check_length(text, MAX_ID_CHARACTERS, subject)
        if subject == "response_id":
            self.signing.check_response_id(text, caller.tenant)
        return Question(tenant=caller.tenant, **{subject: text})

    def _by_token(self, token: str) -> Question:
        """Only that response's, and only what that token's person gave."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise PermissionDenied("the feedback token is not one that this server signed", field="feedback_token")
        handle = self.signing.read_token(token, time.time())
        return Question(tenant=handle.tenant, response_id=handle.response_id, end_user=handle.end_user)


@dataclass(eq=False)
class ExportService(dataset_pb2_grpc.ExportServiceServicer):
    """Reads the lake for whoever operates a tenant; few at once, for each sorts what it gives."""

    lake: Place
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_EXPORTS))

    async def ExportRecords(
        self, request: dataset_pb2.ExportRecordsRequest, context: Any
    ) -> AsyncIterator[dataset_pb2.ExportRecordsResponse]:
        wanted = _wanted(request, CALLER.get())
        if self.places.locked():
            raise ResourceExhausted(f"{MOST_EXPORTS} exports are running; no more at once", retry_after_seconds=30)
        async with self.places:
            parts = _Parts(export(self.lake, wanted))
            try:
                while (part := await asyncio.to_thread(parts.next)) is not None:
                    yield part
            finally:
                # A caller that goes away does not wait for the query; it ends at its next row.
                asyncio.get_running_loop().run_in_executor(None, parts.close)


class _Parts:
    """An iterator that one thread reads while another may come to close it."""

    def __init__(self, parts: Generator[dataset_pb2.ExportRecordsResponse, None, None]) -> None:
        self._parts = parts
        self._turn = threading.Lock()

    def next(self) -> dataset_pb2.ExportRecordsResponse | None:
        with self._turn:
            return next(self._parts, None)

    def close(self) -> None:
        with self._turn:
            self._parts.close()


def _wanted(request: dataset_pb2.ExportRecordsRequest, caller: Caller) -> Wanted:
    if request.persona:
        check_name(request.persona, "persona")
    if request.since_unix_ms < 0:
        raise InvalidInput(f"since_unix_ms is {request.since_unix_ms}; it must be 0 or later", field="since_unix_ms")
    return Wanted(
        caller.tenant, request.persona, request.since_unix_ms, request.without_feedback, request.not_for_training
    )
