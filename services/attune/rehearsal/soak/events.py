"""The events of a run: each is a function of seed and number, so that the checker needs no copy of them."""

import random
from collections.abc import Iterator

from attune.eventlog import FEEDBACK, RESPONSES
from attune.v1 import event_pb2

PERSONA = "concierge"
TENANT = "default"
BEGUN_UNIX_MS = 1_790_000_000_000
_USERS = 12
_POISON_SHARE = 0.02

Event = event_pb2.ResponseEvent | event_pb2.FeedbackEvent


def events(seed: int, responses: int) -> dict[str, tuple[str, bytes]]:
    """Topic and bytes of every event, by its id: a thumb for most responses, revised for some."""
    made: dict[str, tuple[str, bytes]] = {}
    chance = random.Random(f"events-{seed}")
    for number in range(responses):
        response = _response(seed, number)
        made[response.header.event_id] = (RESPONSES, response.SerializeToString(deterministic=True))
        for revision in range(chance.choice((0, 1, 1, 2))):
            thumb = _thumb(seed, number, revision)
            made[thumb.header.event_id] = (FEEDBACK, thumb.SerializeToString(deterministic=True))
    return made


def in_order_of_sending(seed: int, responses: int) -> Iterator[tuple[str, str, bytes]]:
    """Id, topic and bytes, as they are sent: out of order by a little, some twice, and bytes that are no event ("")."""
    chance = random.Random(f"sending-{seed}")
    sent = [(event_id, topic, payload) for event_id, (topic, payload) in events(seed, responses).items()]
    sent += chance.sample(sent, len(sent) // 10)
    sent += [("", chance.choice((RESPONSES, FEEDBACK)), b"\xff\xfe") for _ in range(int(len(sent) * _POISON_SHARE))]
    late = [(number + chance.uniform(0, len(sent) / 5), each) for number, each in enumerate(sent)]
    return (each for _, each in sorted(late, key=lambda pair: pair[0]))


def key_of(payload: bytes) -> bytes:
    """What partitions are chosen by: the conversation."""
    return payload[-8:]


def _header(event_id: str, number: int) -> event_pb2.EventHeader:
    return event_pb2.EventHeader(
        event_id=event_id, schema_version=1, tenant=TENANT, created_unix_ms=BEGUN_UNIX_MS + number
    )


def _response(seed: int, number: int) -> event_pb2.ResponseEvent:
    return event_pb2.ResponseEvent(
        header=_header(f"r-{seed}-{number}", number),
        response_id=f"r-{seed}-{number}",
        request_group=f"r-{seed}-{number}",
        persona=PERSONA,
        persona_version="v1",
        policy_id="base",
        conversation_id=f"c-{number}",
        turn=1,
        end_user=f"user-{number % _USERS}",
        source=event_pb2.SOURCE_SERVED,
        messages=[event_pb2.Message(role=event_pb2.ROLE_USER, content=f"question {number}")],
        prompt_token_ids=[1, 2, number],
        output_token_ids=[3, number],
        output_logprobs=[-0.5, -0.25],
        logprobs_mode="processed_logprobs",
        finish_reason=event_pb2.FINISH_REASON_STOP,
        text=f"answer {number} of {seed}",
        base_model_hash="b" * 64,
        tokenizer_hash="t" * 64,
        chat_template_hash="c" * 64,
    )


def _thumb(seed: int, number: int, revision: int) -> event_pb2.FeedbackEvent:
    return event_pb2.FeedbackEvent(
        header=_header(f"f-{seed}-{number}-{revision}", 1000 + 2 * number + revision),
        response_id=f"r-{seed}-{number}",
        persona=PERSONA,
        conversation_id=f"c-{number}",
        end_user=f"user-{number % _USERS}",
        revision=revision,
        thumb=event_pb2.THUMB_DOWN if (number + revision) % 3 else event_pb2.THUMB_UP,
    )
