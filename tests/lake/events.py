"""Events as inference writes them, small."""

from typing import Any

from attune.v1 import event_pb2

NOW_UNIX_MS = 1_790_000_000_000

# What a message without calls has in the tables beside its role and content.
PLAIN = {"tool_calls": [], "tool_call_id": "", "reasoning": ""}


def response_event(number: int, **changes: Any) -> event_pb2.ResponseEvent:
    """The response `r-<number>`: two messages, three prompt tokens, two output tokens."""
    event = event_pb2.ResponseEvent(
        header=event_pb2.EventHeader(
            event_id=f"response-{number}", schema_version=1, tenant="default", created_unix_ms=NOW_UNIX_MS + number
        ),
        response_id=f"r-{number}",
        persona="concierge",
        persona_version="v1",
        policy_id="base",
        request_group=f"g-{number}",
        conversation_id=f"c-{number}",
        turn=1,
        end_user=f"user-{number % 10}",
        source=event_pb2.SOURCE_SERVED,
        metadata={"app": "1.0", "locale": "de"},
        messages=[
            event_pb2.Message(role=event_pb2.ROLE_SYSTEM, content="Be brief."),
            event_pb2.Message(role=event_pb2.ROLE_USER, content=f"Call a cab, please. {number}"),
        ],
        prompt_token_ids=[1, 2, number],
        output_token_ids=[4_000_000_000, 5],
        output_logprobs=[-0.5, -0.25],
        logprobs_mode="processed_logprobs",
        sampling=event_pb2.Sampling(temperature=0.8, top_p=1, top_k=0, max_tokens=64, seed=7, stop=["END"]),
        finish_reason=event_pb2.FINISH_REASON_STOP,
        text=f"Done. {number}",
        timings=event_pb2.Timings(received_unix_ms=NOW_UNIX_MS, first_token_ms=3.5, total_ms=9.5),
        base_model_hash="b" * 64,
        tokenizer_hash="t" * 64,
        chat_template_hash="c" * 64,
    )
    event.MergeFrom(event_pb2.ResponseEvent(**changes))
    return event


def thumb_event(number: int, about: int, **changes: Any) -> event_pb2.FeedbackEvent:
    """A thumb on the response `r-<about>` by the user it was given to; up when the number is even."""
    event = event_pb2.FeedbackEvent(
        header=event_pb2.EventHeader(
            event_id=f"feedback-{number}",
            schema_version=1,
            tenant="default",
            created_unix_ms=NOW_UNIX_MS + 1000 + number,
        ),
        response_id=f"r-{about}",
        persona="concierge",
        conversation_id=f"c-{about}",
        end_user=f"user-{about % 10}",
        thumb=event_pb2.THUMB_DOWN if number % 2 else event_pb2.THUMB_UP,
    )
    event.MergeFrom(event_pb2.FeedbackEvent(**changes))
    return event
