"""Feedback: checked, then durably logged."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from attune import metrics
from attune.errors import InvalidInput, NotFound, PermissionDenied
from attune.eventlog.log import FEEDBACK, EventLog
from attune.ids import check_response_id, hash_end_user, read_feedback_token
from attune.inference.capture import event_header
from attune.inference.chat import MAX_END_USER_CHARACTERS, check_length
from attune.keys import Keys
from attune.v1 import event_pb2, feedback_pb2, feedback_pb2_grpc

MAX_COMMENT_CHARACTERS = 4000
MAX_RESPONSE_ID_CHARACTERS = 128
MAX_TOKEN_CHARACTERS = 4096

_SIGNALS = {event_pb2.THUMB_UP: "thumb_up", event_pb2.THUMB_DOWN: "thumb_down"}


@dataclass(eq=False)
class FeedbackService(feedback_pb2_grpc.FeedbackServiceServicer):
    """Takes thumbs. A retraction may leave the thumb out: it takes back whichever was given.

    Whether the response that a bare id names is there at all only the lake knows; here its signature is checked.
    """

    log: EventLog
    keys: Keys
    tenant: str

    async def SubmitFeedback(
        self, request: feedback_pb2.SubmitFeedbackRequest, context: Any
    ) -> feedback_pb2.SubmitFeedbackResponse:
        event = self._event(request)
        payload = event.SerializeToString()
        key = (event.conversation_id or event.response_id).encode()
        await asyncio.shield(asyncio.wrap_future(self.log.append(FEEDBACK, key, payload)))
        signal = "retracted" if event.retracted else _SIGNALS[event.thumb]
        metrics.FEEDBACK.labels(event.persona, signal).inc()
        return feedback_pb2.SubmitFeedbackResponse(feedback_id=event.header.event_id)

    def _event(self, request: feedback_pb2.SubmitFeedbackRequest) -> event_pb2.FeedbackEvent:
        _check_signal(request)
        check_length(request.comment, MAX_COMMENT_CHARACTERS, "comment")
        handle = self._handle(request)
        return event_pb2.FeedbackEvent(
            header=event_header(handle.tenant),
            response_id=handle.response_id,
            persona=handle.persona,
            conversation_id=handle.conversation_id,
            end_user=handle.end_user,
            revision=request.revision,
            retracted=request.retracted,
            comment=request.comment,
            # Set even if unspecified: the field that is set says which kind of signal is taken back.
            thumb=request.thumb,
        )

    def _handle(self, request: feedback_pb2.SubmitFeedbackRequest) -> feedback_pb2.FeedbackHandle:
        """Whose feedback on what; of a bare response id, persona and conversation stay empty."""
        match request.WhichOneof("subject"):
            case "feedback_token":
                if request.end_user_id:
                    raise InvalidInput(
                        "end_user_id goes with a response_id; the feedback token says by itself whose it is",
                        field="end_user_id",
                    )
                if len(request.feedback_token) > MAX_TOKEN_CHARACTERS:
                    raise PermissionDenied("the feedback token is not one that this server signed")
                return read_feedback_token(request.feedback_token, self.keys.feedback_token, time.time())
            case "response_id":
                check_length(request.end_user_id, MAX_END_USER_CHARACTERS, "end_user_id")
                if len(request.response_id) > MAX_RESPONSE_ID_CHARACTERS:
                    raise NotFound("no such response", field="response_id")
                check_response_id(request.response_id, self.tenant, self.keys.response_id)
                return feedback_pb2.FeedbackHandle(
                    tenant=self.tenant,
                    response_id=request.response_id,
                    end_user=hash_end_user(self.tenant, request.end_user_id, self.keys.end_user),
                )
            case _:
                raise InvalidInput(
                    "nothing says what the feedback is about; set feedback_token or response_id",
                    field="feedback_token",
                )


def _check_signal(request: feedback_pb2.SubmitFeedbackRequest) -> None:
    if request.thumb in _SIGNALS:
        return
    if request.thumb != event_pb2.THUMB_UNSPECIFIED:
        raise InvalidInput(f"thumb is {request.thumb}; it must be THUMB_UP (1) or THUMB_DOWN (2)", field="thumb")
    if not request.retracted:
        raise InvalidInput("there is no thumb; it must be THUMB_UP (1) or THUMB_DOWN (2)", field="thumb")
