"""ReceiptService: who may ask for what, over the index."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from attune.access import CALLER, Caller, Role
from attune.aggregator.reasons import sentence
from attune.aggregator.receipt_index import ReceiptIndex
from attune.aggregator.receipts import Question, answer
from attune.chat.limits import MAX_ID_CHARACTERS, check_length
from attune.errors import InvalidInput, NotFound, PermissionDenied, Unauthenticated
from attune.signing import SigningKeys
from attune.v1 import dataset_pb2, dataset_pb2_grpc

MAX_TOKEN_CHARACTERS = 4096


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
            return answer(connection, question, sentence, time.time_ns() // 1_000_000)

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
