"""What is masked before the lake, and what is not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from attune.aggregator.ingest import Ingest
from attune.aggregator.privacy.guard import Guard
from attune.aggregator.privacy.scrubber import Scrubber
from attune.eventlog import FEEDBACK, RESPONSES
from attune.lake.rows import row_of, rows_of
from attune.lake.tables import Position
from attune.settings import PrivacySettings, SettingsError, load_settings
from attune.v1 import event_pb2
from tests.aggregator.plant import Plant
from tests.lake.events import response_event, thumb_event

Event = event_pb2.ResponseEvent | event_pb2.FeedbackEvent
AT = Position("log", 0, 0)
MAIL, PHONE, CARD, IBAN = (
    "jane.doe+x@example.co.uk",
    "(415) 555-2671",
    "4111 1111 1111 1111",
    "DE89 3704 0044 0532 0130 00",
)
ADDRESS, KEY = "2001:db8::8a2e:370:7334", "ghp_" + "a1" * 18


def scrubber(**settings: Any) -> Scrubber:
    made = Scrubber.from_settings(PrivacySettings(**settings))
    assert made is not None
    return made


def kept(table: str, *events: Event, **settings: Any) -> list[dict[str, Any]]:
    """The rows as they come into the lake, in one batch."""
    payloads = [event.SerializeToString() for event in events]
    rows = rows_of(table, payloads, "log", 0, range(len(payloads)))
    assert not rows.poison
    return list(scrubber(**settings).rows(table, rows.table).to_pylist())


def masked(text: str, **settings: Any) -> tuple[str, dict[str, int]]:
    """The text as it comes into the lake, and what was found in it."""
    row = kept("feedback", thumb_event(1, 1, comment=text), **settings)[0]
    return row["comment"], dict(row["masked"])


@pytest.mark.parametrize(
    ("kind", "piece"),
    [
        ("mail", MAIL),
        ("phone", PHONE),
        ("phone", "415-555-2671"),
        ("phone", "+49 170 1234567"),
        ("card", CARD),
        ("card", "378282246310005"),
        ("iban", IBAN),
        ("iban", "gb29nwbk60161331926819"),
        ("ip", "192.168.1.17"),
        ("ip", ADDRESS),
        ("key", KEY),
        ("key", "AKIAIOSFODNN7EXAMPLE"),
        ("key", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jk_PZ3nQ"),
        ("key", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----"),
    ],
)
def test_a_piece_becomes_its_kind(kind: str, piece: str) -> None:
    assert masked(f"It is {piece}, she said.") == (f"It is [{kind}], she said.", {kind: 1})


@pytest.mark.parametrize(
    "text",
    [
        "What is 3 plus 4?",
        "On 2024-05-06 12:30:45, at 10:30, and on 06.05.2024",
        "4111 1111 1111 1112 has another check digit, DE88 3704 0044 0532 0130 00 too",
        "Order 4155552671 of version 1.2.3, std::vector a::b, pi is 3.14159265358979",
        "127.0.0.1 and ::1 are this machine; 300.1.2.3 is none",
        "joe@localhost, @jane, a @ b",
        "https://example.org/a/b?c=d#e",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert masked(text) == (text, {})


def test_pieces_that_touch_are_found_one_by_one() -> None:
    text, found = masked(f"{PHONE} {PHONE};{MAIL},{MAIL} https://bob:hunter22@example.org/")
    assert text == "[phone] [phone];[mail],[mail] https://[key]@example.org/"
    assert found == {"phone": 2, "mail": 2, "key": 1}


def test_what_stands_before_and_behind_is_no_disguise() -> None:
    assert masked(f"{IBAN} {IBAN} AND 12 {CARD} {CARD} 7")[0] == "[iban] [iban] AND 12 [card] [card] 7"


@given(
    st.lists(st.sampled_from([MAIL, PHONE, CARD, IBAN, ADDRESS, KEY, " ", "a", "7", "[mail]", "-", "."]), max_size=8)
)
def test_masking_again_changes_nothing(pieces: list[str]) -> None:
    once = masked(" ".join(pieces))[0]
    assert masked(once) == (once, {})


@pytest.mark.timeout(60)  # a pattern that is not linear takes minutes
@pytest.mark.parametrize("piece", ["1 2 3 4 5 6 7 8 9 ", "1.1.1.", "://a:", "eyJ", "GB12 ", "a@", "(((1 ", "//"])
def test_no_text_holds_ingest_up(piece: str) -> None:
    text, found = masked(piece * (500_000 // len(piece)))
    assert text == "[unread]" or not found


def test_what_a_response_says_anywhere_is_masked_and_its_tokens_go() -> None:
    event = response_event(1, text=f"I write to {MAIL}.", reasoning=f"They said {PHONE}.")
    event.metadata["from"] = ADDRESS
    event.sampling.stop.append(KEY)
    event.messages[1].content = f"My card is {CARD}."
    arguments = json.dumps({"to": MAIL, "card": int(CARD.replace(" ", "")), "copies": 2, MAIL: True})
    event.messages.add(role=event_pb2.ROLE_ASSISTANT).tool_calls.add(id="1", name="mail", arguments_json=arguments)
    event.tool_calls.add(id="2", name="mail", arguments_json=f"{{not JSON: {MAIL}")
    event.tools.add(name="mail", description=f"ask {MAIL}", parameters_json=json.dumps({"default": IBAN}))

    row = kept("responses", response_event(2), event, response_event(3))[1]

    for piece in (MAIL, PHONE, CARD, CARD.replace(" ", ""), IBAN, ADDRESS, KEY):
        assert piece not in repr(row)
    assert row["text"].endswith("I write to [mail].")
    called = json.loads(row["messages"][2]["tool_calls"][0]["arguments_json"])
    assert called == {"to": "[mail]", "card": "[card]", "copies": 2, "[mail]": True}
    assert dict(row["metadata"])["locale"] == "de"
    assert (row["prompt_token_ids"], row["output_token_ids"], row["output_logprobs"]) == ([], [], [])
    assert dict(row["masked"]) == {"mail": 5, "phone": 1, "ip": 1, "key": 1, "card": 2, "iban": 1}
    assert row["response_id"] == "r-1"


def test_a_row_without_any_keeps_every_token() -> None:
    row = row_of("responses", response_event(1).SerializeToString(), AT)
    assert kept("responses", response_event(1)) == [{**row, "masked": []}]


def test_a_piece_behind_an_escape_in_json_is_found() -> None:
    event = response_event(1)
    event.tool_calls.add(id="1", name="mail", arguments_json='{"to": "jane\\u0040example.org"}')
    assert kept("responses", event)[0]["tool_calls"][0]["arguments_json"] == '{"to": "[mail]"}'


TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            [MAIL, PHONE, CARD, IBAN, ADDRESS, KEY, "192.168.1.17", "+49\u2009170\u00a01234567", "\u0661\u0662"]
        ),
        st.text(max_size=12),
        st.text("0123456789 .:-()+@/ab", max_size=24),
    ),
    max_size=5,
).map("".join)


@examples(max_examples=200, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_a_batch_is_masked_as_each_of_its_rows_alone(texts: list[str]) -> None:
    events = [response_event(number, text=text, reasoning=text[::-1]) for number, text in enumerate(texts)]
    for number, event in enumerate(events):
        event.messages[1].content = texts[number - 1]
        event.metadata["from"] = texts[-1 - number]
    alone = [
        scrubber().row("responses", row_of("responses", event.SerializeToString(), Position("log", 0, offset)))
        for offset, event in enumerate(events)
    ]
    assert kept("responses", *events) == alone


def test_comments_corrections_and_notes_are_masked() -> None:
    correction = thumb_event(1, 1, correction=event_pb2.Correction(text=f"Write to {MAIL}"), comment=PHONE)
    note = thumb_event(2, 1, annotation=event_pb2.Annotation(start=1, end=2, tag="wrong", note=MAIL))
    rows = kept("feedback", correction, note)
    assert (rows[0]["correction"], rows[0]["comment"]) == ("Write to [mail]", "[phone]")
    assert rows[1]["annotation"] == {"start": 1, "end": 2, "tag": "wrong", "note": "[mail]"}


def test_kinds_and_phones_are_the_operators_choice() -> None:
    assert masked(f"{MAIL} {PHONE}", kinds=("mail",)) == (f"[mail] {PHONE}", {"mail": 1})
    assert masked("030 901820", phone_regions=()) == ("030 901820", {})
    assert masked("030 901820", phone_regions=("DE",)) == ("[phone]", {"phone": 1})
    assert Scrubber.from_settings(PrivacySettings(scrub=False)) is None


def test_an_operators_own_pattern_looks_first() -> None:
    text, found = masked(f"ORD-123456 of {MAIL}", patterns={"order": r"ORD-\d{6}", "ours": r"\S+@example\.co\.uk"})
    assert (text, found) == ("[order] of [ours]", {"order": 1, "ours": 1})


def test_a_pattern_that_takes_too_long_masks_the_text() -> None:
    evil = {"evil": r"(a|aa)+$"}
    assert masked("a" * 60 + "!", patterns=evil, pattern_milliseconds=20) == ("[unread]", {"unread": 1})


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('patterns = {mail = "x"}', "mail"),
        ('patterns = {Bad = "x"}', "Bad"),
        ('patterns = {order = "(x"}', "order: not a regular expression"),
        ('patterns = {order = "x*"}', "order: it matches where there is nothing"),
        ('phone_regions = ["XX"]', "no region"),
        ('kinds = ["name"]', "kinds"),
        ("pattern_milliseconds = 0", "pattern_milliseconds"),
    ],
)
def test_bad_settings_stop_the_start(tmp_path: Any, line: str, complaint: str) -> None:
    config = tmp_path / "attune.toml"
    config.write_text(f"[privacy]\n{line}\n")
    with pytest.raises(SettingsError, match="privacy") as refused:
        load_settings(config, {})
    assert complaint in refused.value.message


def test_nothing_of_it_reaches_the_lake(plant: Plant) -> None:
    plant.append(response_event(1, text=MAIL), response_event(2), thumb_event(1, 1, comment=PHONE))
    for topic in (RESPONSES, FEEDBACK):
        Ingest(plant.log, plant.lake, topic, batch_records=10, guard=Guard(scrubber())).poll()
    rows = plant.lake.responses.read(["text", "masked", "output_token_ids"]).to_pylist()
    assert [dict(row["masked"]) for row in rows] == [{"mail": 1}, {}]
    assert [bool(row["output_token_ids"]) for row in rows] == [False, True]
    assert plant.lake.feedback.read(["comment"]).to_pylist() == [{"comment": "[phone]"}]
