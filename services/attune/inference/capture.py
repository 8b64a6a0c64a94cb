"""What a finished response leaves behind: its event, and how large that can get."""

import hashlib
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from attune.chat.messages import MAX_CALLS, count_turns
from attune.clock import now_unix_ms
from attune.ids import new_event_id
from attune.inference.engine import LOGPROBS_MODE
from attune.settings import TenantSettings
from attune.v1 import chat_pb2, event_pb2, feedback_pb2

SCHEMA_VERSION = 1

# Ids, hashes, timings, numbers and the tags of all fields that do not grow with the request or the answer.
_FIXED_BYTES = 2048
# A token id is a varint of at most 5 bytes, a logprob 4.
_TOKEN_ID_BYTES = 5
_LOGPROB_BYTES = 4
# A call's id, name and tags beside its arguments; a tool's tags.
_CALL_BYTES = 192


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
    # Shared by the responses to one request: the first one's id.
    request_group: str
    alternative: int
    tenant: str
    persona: str
    persona_version: str
    policy_id: str
    conversation_id: str
    # Pseudonym.
    end_user: str
    consent: event_pb2.Consent
    tools: Sequence[event_pb2.Tool]
    grammar_masked: bool
    prompt_token_ids: list[int]
    sampling: event_pb2.Sampling
    received_unix_ms: int
    # Monotonic.
    received_seconds: float


@dataclass(frozen=True)
class Captured:
    """What was sampled, and what the caller got of it."""

    output_token_ids: Sequence[int]
    output_logprobs: Sequence[float]
    text: str
    tool_calls: Sequence[event_pb2.ToolCall]
    reasoning: str
    finish_reason: "event_pb2.FinishReason.ValueType"
    # Monotonic.
    first_token_seconds: float | None


def largest_event_bytes(
    request: chat_pb2.ChatRequest,
    *,
    tools: Sequence[event_pb2.Tool],
    prompt_tokens: int,
    max_tokens: int,
    max_token_bytes: int,
) -> int:
    """No event of this request is larger, whatever is answered."""
    answer_bytes = max_tokens * (_TOKEN_ID_BYTES + _LOGPROB_BYTES + max_token_bytes)
    calls_bytes = MAX_CALLS * _CALL_BYTES if tools else 0
    tools_bytes = sum(tool.ByteSize() + _CALL_BYTES for tool in tools)
    return (
        _FIXED_BYTES + request.ByteSize() + tools_bytes + prompt_tokens * _TOKEN_ID_BYTES + answer_bytes + calls_bytes
    )


def response_event(
    request: chat_pb2.ChatRequest, origin: Origin, hashes: Hashes, captured: Captured, *, end_seconds: float
) -> event_pb2.ResponseEvent:
    """The event of a response that has ended, well or aborted; `end_seconds` is monotonic."""
    timings = event_pb2.Timings(
        received_unix_ms=origin.received_unix_ms, total_ms=(end_seconds - origin.received_seconds) * 1000
    )
    if captured.first_token_seconds is not None:
        timings.first_token_ms = (captured.first_token_seconds - origin.received_seconds) * 1000
    return event_pb2.ResponseEvent(
        header=event_header(origin.tenant),
        response_id=origin.response_id,
        persona=origin.persona,
        persona_version=origin.persona_version,
        policy_id=origin.policy_id,
        request_group=origin.request_group,
        alternative=origin.alternative,
        conversation_id=origin.conversation_id,
        turn=count_turns(request.messages),
        client_request_id=request.client_request_id,
        end_user=origin.end_user,
        source=event_pb2.SOURCE_SERVED,
        consent=origin.consent,
        metadata=request.metadata,
        messages=request.messages,
        prompt_token_ids=origin.prompt_token_ids,
        output_token_ids=captured.output_token_ids,
        output_logprobs=captured.output_logprobs,
        logprobs_mode=LOGPROBS_MODE,
        greedy=origin.sampling.temperature == 0,
        grammar_masked=origin.grammar_masked,
        sampling=origin.sampling,
        finish_reason=captured.finish_reason,
        text=captured.text,
        timings=timings,
        base_model_hash=hashes.base_model,
        tokenizer_hash=hashes.tokenizer,
        chat_template_hash=hashes.chat_template,
        tools=origin.tools,
        tool_choice=request.tool_choice if request.HasField("tool_choice") else None,
        response_format=request.response_format if request.HasField("response_format") else None,
        tool_calls=captured.tool_calls,
        reasoning=captured.reasoning,
    )


def event_header(tenant: str) -> event_pb2.EventHeader:
    return event_pb2.EventHeader(
        event_id=new_event_id(),
        schema_version=SCHEMA_VERSION,
        tenant=tenant,
        created_unix_ms=now_unix_ms(),
    )


def feedback_handle(origin: Origin, *, good_for_seconds: float) -> feedback_pb2.FeedbackHandle:
    """What the response's feedback token says, but for the key that signs it."""
    prompt = array("I", origin.prompt_token_ids)
    return feedback_pb2.FeedbackHandle(
        tenant=origin.tenant,
        persona=origin.persona,
        conversation_id=origin.conversation_id,
        response_id=origin.response_id,
        prompt_digest=hashlib.sha256(prompt.tobytes()).digest()[:16],
        end_user=origin.end_user,
        expires_unix_seconds=int(time.time() + good_for_seconds),
    )


def resolve_consent(asked: event_pb2.Consent, default: TenantSettings | None) -> event_pb2.Consent:
    """What a request denies is denied, and what it leaves open is as the tenant says (nothing said: agreed)."""
    store, train = (True, True) if default is None else (default.store, default.train)
    return event_pb2.Consent(
        store=asked.store if asked.HasField("store") else store,
        train=asked.train if asked.HasField("train") else train,
    )
