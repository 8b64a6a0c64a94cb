"""Events become rows a batch at a time."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from attune.lake.rows import PoisonousRecord, row_of, rows_of
from attune.lake.tables import FEEDBACK, RESPONSES, SCHEMAS, Position
from attune.v1 import event_pb2
from tests.lake.events import response_event, thumb_event

AT = Position("log", 0, 7)


def test_of_a_batch_the_poisonous_ones_are_named_and_the_others_stay() -> None:
    payloads = [response_event(number).SerializeToString() for number in range(5)]
    payloads[1] = b"\xff\xff"
    nameless = response_event(3)
    nameless.ClearField("persona")
    payloads[3] = nameless.SerializeToString()
    rows = rows_of(RESPONSES, payloads, "log", 2, [10, 12, 14, 16, 18])
    assert rows.poison == {1: "not a ResponseEvent", 3: "persona is missing"}
    assert rows.table["log_offset"].to_pylist() == [10, 14, 18]
    assert rows.table["text"].to_pylist() == ["Done. 0", "Done. 2", "Done. 4"]


@pytest.mark.parametrize("table", [RESPONSES, FEEDBACK])
@pytest.mark.parametrize("payloads", [[], [b"\xff"], [b""]])
def test_a_batch_without_one_good_record_has_no_rows(table: str, payloads: list[bytes]) -> None:
    rows = rows_of(table, payloads, "log", 0, range(len(payloads)))
    assert (rows.table.num_rows, list(rows.poison)) == (0, list(range(len(payloads))))
    assert rows.table.schema == SCHEMAS[table]


def test_a_batch_is_the_rows_of_its_records() -> None:
    events = [response_event(number, consent=event_pb2.Consent(store=number % 2 == 0)) for number in range(6)]
    events[2].messages.add(role=event_pb2.ROLE_ASSISTANT).tool_calls.add(id="1", name="cab", arguments_json="{}")
    events[4].ClearField("messages")
    events[4].ClearField("sampling")
    payloads = [event.SerializeToString() for event in events]
    together = rows_of(RESPONSES, payloads, "log", 0, range(6)).table.to_pylist()
    assert together == [row_of(RESPONSES, payload, Position("log", 0, n)) for n, payload in enumerate(payloads)]
    assert [row["text"] for row in together] == ["Done. 0", "", "Done. 2", "", "Done. 4", ""]


def test_what_is_there_twice_is_not_guessed_at() -> None:
    both = thumb_event(1, 1).SerializeToString() + event_pb2.FeedbackEvent(rating=3).SerializeToString()
    with pytest.raises(PoisonousRecord, match="more than one signal"):
        row_of(FEEDBACK, both, AT)
    entry = event_pb2.ResponseEvent(metadata={"app": "2.0"}).SerializeToString()
    with pytest.raises(PoisonousRecord, match="a key twice"):
        row_of(RESPONSES, response_event(1).SerializeToString() + entry, AT)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=2), st.integers(0, 2)), max_size=3))
def test_bytes_are_read_as_protobuf_reads_them(changes: list[tuple[int, bytes, int]]) -> None:
    payload = response_event(3, text="Grüße", output_logprobs=[]).SerializeToString()
    for place, put, cut in changes:
        at = place % len(payload)
        payload = payload[:at] + put + payload[at + cut :]
    try:
        row = row_of(RESPONSES, payload, AT)
    except PoisonousRecord as poison:
        if str(poison) != "not a ResponseEvent":
            return
        with pytest.raises(DecodeError):
            event_pb2.ResponseEvent.FromString(payload)
        return
    try:
        event = event_pb2.ResponseEvent.FromString(payload)
    except DecodeError:  # a list of floats whose bytes end within one
        return
    assert row["event_id"] == event.header.event_id
    if row["consent_store"] is not False:
        assert (row["text"], row["prompt_token_ids"]) == (event.text, list(event.prompt_token_ids))
        assert row["seed"] == (event.sampling.seed if event.sampling.HasField("seed") else None)
