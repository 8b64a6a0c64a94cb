"""What a finished response leaves behind: its event, and how large that can get."""

import hashlib
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from attune.chat.messages import count_turns
from attune.ids import new_event_id
from attune.inference.engine import LOGPROBS_MODE
from attune.v1 import chat_pb2, event_pb2, feedback_pb2

SCHEMA_VERSION = 1

# Ids, hashes, timings, numbers and the tags of all fields that do not grow with the request or the answer.
_FIXED_BYTES = 2048
# A token id is a varint of at most 5 bytes, a logprob 4.
_TOKEN_ID_BYTES = 5
_LOGPROB_BYTES = 4


@dataclass(frozen=True)
class Hashes:
    """What produced a response, SHA-256, hexadecimal."""

    base_model: str
    tokenizer: str
    chat_template: str


@dataclass(frozen=True)
class Origin:
    """What is known of a response before its first token."""

    response_id: str
    tenant: str
    persona: str
    persona_version: str
    policy_id: str
    conversation_id: str
    # Pseudonym.
    end_user: str
    prompt_token_ids: list[int]
    sampling: event_pb2.Sampling
    received_unix_ms: int
    # Monotonic.
    received_seconds: float


def largest_event_bytes(
    request: chat_pb2.ChatRequest, *, prompt_tokens: int, max_tokens: int, max_token_bytes: int
) -> int:
    """No event of this request is larger, whatever is answered."""
    answer_bytes = max_tokens * (_TOKEN_ID_BYTES + _LOGPROB_BYTES + max_token_bytes)
    return _FIXED_BYTES + request.ByteSize() + prompt_tokens * _TOKEN_ID_BYTES + answer_bytes


def response_event(
    request: chat_pb2.ChatRequest,
    origin: Origin,
    hashes: Hashes,
    *,
    output_token_ids: Sequence[int],
    output_logprobs: Sequence[float],
    text: str,
    finish_reason: "event_pb2.FinishReason.ValueType",
    first_token_seconds: float | None,
    end_seconds: float,
) -> event_pb2.ResponseEvent:
    """The event of a response that has ended, well or aborted. The two times are monotonic."""
    timings = event_pb2.Timings(
        received_unix_ms=origin.received_unix_ms, total_ms=(end_seconds - origin.received_seconds) * 1000
    )
    if first_token_seconds is not None:
        timings.first_token_ms = (first_token_seconds - origin.received_seconds) * 1000
    return event_pb2.ResponseEvent(
        header=event_header(origin.tenant),
        response_id=origin.response_id,
        persona=origin.persona,
        persona_version=origin.persona_version,
        policy_id=origin.policy_id,
        request_group=origin.response_id,
        alternative=0,
        conversation_id=origin.conversation_id,
        turn=count_turns(request.messages),
        client_request_id=request.client_request_id,
        end_user=origin.end_user,
        source=event_pb2.SOURCE_SERVED,
        consent=event_pb2.Consent(store=True, train=may_train(request.consent)),
        metadata=request.metadata,
        messages=request.messages,
        prompt_token_ids=origin.prompt_token_ids,
        output_token_ids=output_token_ids,
        output_logprobs=output_logprobs,
        logprobs_mode=LOGPROBS_MODE,
        greedy=origin.sampling.temperature == 0,
        grammar_masked=False,
        sampling=origin.sampling,
        finish_reason=finish_reason,
        text=text,
        timings=timings,
        base_model_hash=hashes.base_model,
        tokenizer_hash=hashes.tokenizer,
        chat_template_hash=hashes.chat_template,
    )


def event_header(tenant: str) -> event_pb2.EventHeader:
    return event_pb2.EventHeader(
        event_id=new_event_id(),
        schema_version=SCHEMA_VERSION,
        tenant=tenant,
        created_unix_ms=time.time_ns() // 1_000_000,
    )


def feedback_handle(origin: Origin, *, key_id: str, good_for_seconds: float) -> feedback_pb2.FeedbackHandle:
    """What the response's feedback token says."""
    prompt = array("I", origin.prompt_token_ids)
    return feedback_pb2.FeedbackHandle(
        tenant=origin.tenant,
        persona=origin.persona,
        conversation_id=origin.conversation_id,
        response_id=origin.response_id,
        prompt_digest=hashlib.sha256(prompt.tobytes()).digest()[:16],
        end_user=origin.end_user,
        expires_unix_seconds=int(time.time() + good_for_seconds),
        key_id=key_id,
    )


def may_store(consent: event_pb2.Consent) -> bool:
    return consent.store if consent.HasField("store") else True


def may_train(consent: event_pb2.Consent) -> bool:
    return consent.train if consent.HasField("train") else True
