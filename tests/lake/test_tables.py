import os

import pytest
from google.protobuf.descriptor import Descriptor

from attune.lake import tables
from attune.lake.rows import PoisonousRecord, row_of
from attune.lake.tables import DEAD_LETTER, FEEDBACK, RESPONSES, SCHEMAS, Position
from attune.v1 import event_pb2
from tests.lake.events import NOW_UNIX_MS, PLAIN, response_event, thumb_event

AT = Position("log", 0, 7)


def test_every_field_of_a_response_reaches_its_row() -> None:
    row = row_of(RESPONSES, response_event(3).SerializeToString(), AT)
    stored = tables.to_arrow(RESPONSES, [row]).to_pylist()[0]
    assert stored == row
    assert stored | {} == {
        "log_id": "log",
        "log_partition": 0,
        "log_offset": 7,
        "event_id": "response-3",
        "schema_version": 1,
        "tenant": "default",
        "created_unix_ms": NOW_UNIX_MS + 3,
        "response_id": "r-3",
        "persona": "concierge",
        "persona_version": "v1",
        "policy_id": "base",
        "request_group": "g-3",
        "alternative": 0,
        "conversation_id": "c-3",
        "turn": 1,
        "client_request_id": "",
        "end_user": "user-3",
        "source": "served",
        "consent_store": None,
        "consent_train": None,
        "metadata": [("app", "1.0"), ("locale", "de")],
        "messages": [
            {"role": "system", "content": "Be brief.", **PLAIN},
            {"role": "user", "content": "Call a cab, please. 3", **PLAIN},
        ],
        "prompt_token_ids": [1, 2, 3],
        "output_token_ids": [4_000_000_000, 5],
        "output_logprobs": [-0.5, -0.25],
        "logprobs_mode": "processed_logprobs",
        "greedy": False,
        "grammar_masked": False,
        "temperature": 0.8,
        "top_p": 1.0,
        "top_k": 0,
        "presence_penalty": None,
        "frequency_penalty": None,
        "max_tokens": 64,
        "seed": 7,
        "stop": ["END"],
        "finish_reason": "stop",
        "text": "Done. 3",
        "received_unix_ms": NOW_UNIX_MS,
        "first_token_ms": 3.5,
        "total_ms": 9.5,
        "base_model_hash": "b" * 64,
        "tokenizer_hash": "t" * 64,
        "chat_template_hash": "c" * 64,
        "tools": [],
        "tool_choice": "auto",
        "response_format": "text",
        "tool_calls": [],
        "reasoning": "",
        "masked": None,
    }


def fields(message: Descriptor) -> set[str]:
    """The columns that a message's fields have to be found in."""
    flattened = {"header", "sampling", "timings"}
    names = set()
    for field in message.fields:
        if field.name in ("remark", "implicit"):  # the kind and the name say it all
            continue
        if field.name == "outcome":
            names |= {"outcome_flag", "outcome_number"}
        elif field.message_type is not None and field.name in flattened:
            names |= fields(field.message_type)
        elif field.message_type is not None and field.name == "consent":
            names |= {f"consent_{part.name}" for part in field.message_type.fields}
        else:
            names.add(field.name)
    return names


def test_no_field_of_the_events_is_forgotten() -> None:
    ours = {"log_id", "log_partition", "log_offset", "masked"}
    assert set(SCHEMAS[RESPONSES].names) == fields(event_pb2.ResponseEvent.DESCRIPTOR) | ours
    assert set(SCHEMAS[FEEDBACK].names) == fields(event_pb2.FeedbackEvent.DESCRIPTOR) | ours | {"kind"}


def test_nothing_of_an_exchange_is_kept_that_may_not_be_stored() -> None:
    event = response_event(3, consent=event_pb2.Consent(store=False), client_request_id="mine")
    row = row_of(RESPONSES, event.SerializeToString(), AT)
    assert row["response_id"] == "r-3"
    assert row["consent_store"] is False
    kept = str(row)
    for private in ("cab", "Done", "4000000000", "mine", "user-3", "locale", "END"):
        assert private not in kept


def test_feedback_becomes_a_row() -> None:
    row = row_of(FEEDBACK, thumb_event(5, 3, revision=2, comment="no").SerializeToString(), AT)
    assert tables.to_arrow(FEEDBACK, [row]).to_pylist() == [row]
    assert (row["kind"], row["thumb"], row["revision"], row["comment"]) == ("thumb", "down", 2, "no")


def test_a_retraction_needs_no_value() -> None:
    event = thumb_event(5, 3, retracted=True)
    event.thumb = event_pb2.THUMB_UNSPECIFIED
    row = row_of(FEEDBACK, event.SerializeToString(), AT)
    assert (row["kind"], row["thumb"], row["retracted"]) == ("thumb", None, True)


SIGNALS: dict[str, tuple[event_pb2.FeedbackEvent, dict[str, object]]] = {
    "rating": (event_pb2.FeedbackEvent(rating=4), {"rating": 4}),
    "ranking": (
        event_pb2.FeedbackEvent(
            ranking=event_pb2.Ranking(entries=[event_pb2.Ranking.Entry(response_id="r-3", rank=1)])
        ),
        {"ranking": [{"response_id": "r-3", "rank": 1}]},
    ),
    "correction": (
        event_pb2.FeedbackEvent(correction=event_pb2.Correction(text="I cannot.")),
        {"correction": "I cannot."},
    ),
    "annotation": (
        event_pb2.FeedbackEvent(annotation=event_pb2.Annotation(start=3, end=7, tag="wrong", note="no")),
        {"annotation": {"start": 3, "end": 7, "tag": "wrong", "note": "no"}},
    ),
    "outcome": (
        event_pb2.FeedbackEvent(outcome=event_pb2.Outcome(name="solved", flag=False)),
        {"outcome_flag": False, "outcome_number": None},
    ),
    "implicit": (event_pb2.FeedbackEvent(implicit=event_pb2.IMPLICIT_SIGNAL_COPIED), {}),
    "remark": (event_pb2.FeedbackEvent(remark=event_pb2.Remark(), tags=["great"]), {"tags": ["great"]}),
}


@pytest.mark.parametrize("kind", SIGNALS)
def test_every_kind_of_signal_has_its_columns(kind: str) -> None:
    signal, columns = SIGNALS[kind]
    event = thumb_event(5, 3)
    event.ClearField("thumb")
    event.MergeFrom(signal)
    row = row_of(FEEDBACK, event.SerializeToString(), AT)
    assert row["kind"] == kind
    assert {name: row[name] for name in columns} == columns
    assert tables.to_arrow(FEEDBACK, [row]).to_pylist() == [row]


def poisoned_response(field: str) -> bytes:
    event = response_event(1)
    match field:
        case "random bytes":
            return os.urandom(200)
        case "bad UTF-8":
            return event.SerializeToString().replace(b"Done. 1", b"Don\xff. 1")
        case "nothing":
            return b""
        case "later schema":
            event.header.schema_version = 9
        case "no time":
            event.header.created_unix_ms = -5
        case "logprobs":
            event.output_logprobs.append(0)
        case "seed":
            event.sampling.seed = 1 << 63
        case "role":
            event.messages[0].ClearField("role")
        case "header.event_id":
            event.header.ClearField("event_id")
        case "header.tenant":
            event.header.ClearField("tenant")
        case _:
            event.ClearField(field)  # type: ignore[arg-type]
    return event.SerializeToString()


@pytest.mark.parametrize(
    "field",
    [
        *("random bytes", "bad UTF-8", "nothing", "later schema", "no time", "logprobs", "seed", "role"),
        *("header.event_id", "header.tenant", "response_id", "persona", "policy_id", "source", "finish_reason"),
    ],
)
def test_a_poisonous_response_is_refused_with_a_reason_that_does_not_quote_it(field: str) -> None:
    with pytest.raises(PoisonousRecord) as refusal:
        row_of(RESPONSES, poisoned_response(field), AT)
    assert "cab" not in str(refusal.value)
    if "." in field or "_" in field:
        assert field in str(refusal.value)


def test_poisonous_feedback_is_refused() -> None:
    for thumb in (event_pb2.THUMB_UNSPECIFIED, 17):
        with pytest.raises(PoisonousRecord, match="thumb is"):
            row_of(FEEDBACK, thumb_event(1, 1, thumb=thumb).SerializeToString(), AT)
    event = thumb_event(1, 1)
    event.ClearField("thumb")
    with pytest.raises(PoisonousRecord, match="signal is missing"):
        row_of(FEEDBACK, event.SerializeToString(), AT)
    with pytest.raises(PoisonousRecord):
        row_of(FEEDBACK, os.urandom(100), AT)


def test_a_huge_dead_letter_keeps_its_beginning_its_size_and_its_hash() -> None:
    row = tables.dead_letter_row("attune.responses", b"key", b"x" * (3 << 20), "huge", AT)
    assert (len(row["payload"]), row["payload_bytes"], len(row["payload_sha256"])) == (1 << 20, 3 << 20, 64)
    assert tables.to_arrow(DEAD_LETTER, [row]).num_rows == 1
