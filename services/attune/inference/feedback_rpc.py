"""Feedback over gRPC."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from attune.access import CALLER
from attune.inference.feedback import Feedback
from attune.inference.imports import Imports
from attune.v1 import feedback_pb2, feedback_pb2_grpc


@dataclass(eq=False)
class FeedbackService(feedback_pb2_grpc.FeedbackServiceServicer):
    """The RPCs of FeedbackService."""

    feedback: Feedback

    async def SubmitFeedback(
        self, request: feedback_pb2.SubmitFeedbackRequest, context: Any
    ) -> feedback_pb2.SubmitFeedbackResponse:
        return await self.feedback.submit(request, CALLER.get())

    async def SubmitFeedbackBatch(
        self, request_iterator: AsyncIterator[feedback_pb2.SubmitFeedbackRequest], context: Any
    ) -> AsyncIterator[feedback_pb2.SubmitFeedbackResult]:
        async for result in self.feedback.submit_batch(request_iterator, CALLER.get()):
            yield result


@dataclass(eq=False)
class ImportService(feedback_pb2_grpc.ImportServiceServicer):
    """The RPC of ImportService."""

    imports: Imports

    async def ImportResponses(
        self, request_iterator: AsyncIterator[feedback_pb2.ImportResponseRequest], context: Any
    ) -> AsyncIterator[feedback_pb2.ImportResponseResult]:
        async for result in self.imports.take_all(request_iterator, CALLER.get()):
            yield result
