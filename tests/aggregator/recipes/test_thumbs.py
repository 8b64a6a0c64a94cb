"""What the recipe `thumbs` makes an example of, and what it leaves out."""

import itertools
from typing import Any

import pytest

from attune.aggregator.ingest import Ingest
from attune.aggregator.privacy.guard import Guard
from attune.aggregator.privacy.scrubber import Scrubber
from attune.errors import DataLoss
from attune.eventlog import TOPICS
from attune.lake.left_out import list_left_out
from attune.lake.tables import to_arrow
from attune.settings import PrivacySettings
from attune.v1 import event_pb2
from tests.aggregator.plant import Plant
from tests.lake.events import NOW_UNIX_MS, PLAIN, response_event, thumb_event

UP, DOWN = event_pb2.THUMB_UP, event_pb2.THUMB_DOWN
DAY_MS = 86_400_000


def rows(plant: Plant) -> list[dict[str, Any]]:
    plant.ingest_all()
    found: list[dict[str, Any]] = plant.build().table().to_pylist()
    return found


def left_out(plant: Plant) -> dict[str, int]:
    plant.ingest_all()
    return dict(plant.build().manifest.counts["left_out"])


def test_a_row_carries_what_a_learner_needs(plant: Plant) -> None:
    plant.append(response_event(3), thumb_event(8, 3))
    row = rows(plant)[0]
    assert row.pop("split") in ("train", "heldout")
    assert len(row.pop("example_id")) == 32
    assert row == {
        "label": "liked",
        "weight": 1.0,
        "weighed_by": [],
        "people": ["user-3"],
        "feedback_ids": ["feedback-8"],
        "response_ids": ["r-3"],
        "response_id": "r-3",
        "persona": "concierge",
        "persona_version": "v1",
        "guideline_version": "",
        "policy_id": "base",
        "conversation_id": "c-3",
        "end_user": "user-3",
        "turn": 1,
        "messages": [
            {"role": "system", "content": "Be brief.", **PLAIN},
            {"role": "user", "content": "Call a cab, please. 3", **PLAIN},
        ],
        "tools": [],
        "completion": [{"role": "assistant", "content": "Done. 3", **PLAIN}],
        "prompt_token_ids": [1, 2, 3],
        "output_token_ids": [4_000_000_000, 5],
        "output_logprobs": [-0.5, -0.25],
        "logprobs_mode": "processed_logprobs",
        "base_model_hash": "b" * 64,
        "chat_template_hash": "c" * 64,
        "created_unix_ms": NOW_UNIX_MS + 1008,
    }


def test_feedback_before_its_response_still_joins(plant: Plant) -> None:
    plant.append(thumb_event(1, 1))
    assert left_out(plant) == {"unknown_response": 1}
    plant.append(response_event(1))
    assert [row["response_id"] for row in rows(plant)] == ["r-1"]
    assert left_out(plant) == {}


def test_the_latest_revision_wins_in_every_order_of_arrival(plant: Plant) -> None:
    for response, order in enumerate(itertools.permutations(range(3))):
        plant.append(response_event(response))
        thumbs = [
            thumb_event(10 * response, response, revision=0, thumb=UP),
            thumb_event(10 * response + 1, response, revision=1, thumb=UP),
            thumb_event(10 * response + 2, response, revision=2, thumb=DOWN),
        ]
        plant.append(*[thumbs[place] for place in order])
    assert [row["label"] for row in rows(plant)] == ["disliked"] * 6


def test_of_equal_revisions_the_later_made_wins_and_then_the_larger_id(plant: Plant) -> None:
    plant.append(response_event(1), response_event(2))
    plant.append(thumb_event(21, 1, thumb=DOWN), thumb_event(20, 1, thumb=UP))
    same_time = event_pb2.EventHeader(created_unix_ms=NOW_UNIX_MS)
    plant.append(thumb_event(31, 2, header=same_time, thumb=DOWN), thumb_event(30, 2, header=same_time, thumb=UP))
    assert [row["label"] for row in rows(plant)] == ["disliked", "disliked"]


def test_what_was_taken_back_is_out_and_may_come_again(plant: Plant) -> None:
    plant.append(response_event(1), thumb_event(2, 1), thumb_event(4, 1, revision=1, retracted=True))
    assert rows(plant) == []
    assert left_out(plant) == {"retracted": 1}
    plant.append(thumb_event(6, 1, revision=2))
    assert len(rows(plant)) == 1


def test_a_retraction_without_a_value_takes_the_thumb_back(plant: Plant) -> None:
    retraction = thumb_event(4, 1, revision=1, retracted=True)
    retraction.thumb = event_pb2.THUMB_UNSPECIFIED
    plant.append(response_event(1), thumb_event(2, 1), retraction)
    assert left_out(plant) == {"retracted": 1}


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("aborted", {"finish_reason": event_pb2.FINISH_REASON_ABORTED}),
        ("not_consented", {"consent": event_pb2.Consent(train=False)}),
        ("not_stored", {"consent": event_pb2.Consent(store=False)}),
        ("not_served", {"source": event_pb2.SOURCE_IMPORTED}),
        ("not_served", {"source": event_pb2.SOURCE_TEACHER}),
        ("other_tenant", {"header": event_pb2.EventHeader(tenant="other")}),
        ("other_persona", {"persona": "tutor"}),
    ],
)
def test_what_may_not_be_learned_from_is_left_out_by_reason(plant: Plant, reason: str, changes: dict[str, Any]) -> None:
    plant.append(response_event(1, **changes), thumb_event(1, 1), response_event(2), thumb_event(2, 2))
    assert [row["response_id"] for row in rows(plant)] == ["r-2"]
    assert left_out(plant) == {reason: 1}


def test_consent_that_is_given_or_not_mentioned_counts(plant: Plant) -> None:
    plant.append(response_event(1, consent=event_pb2.Consent(store=True, train=True)), thumb_event(1, 1))
    plant.append(response_event(2, consent=event_pb2.Consent(store=True)), thumb_event(2, 2))
    assert len(rows(plant)) == 2


def test_a_response_of_no_tokens_is_no_example(plant: Plant) -> None:
    empty = response_event(1)
    del empty.output_token_ids[:], empty.output_logprobs[:]
    plant.append(empty, thumb_event(1, 1))
    assert left_out(plant) == {"empty_response": 1}


def test_a_response_that_lost_its_tokens_to_masking_is_no_example(plant: Plant) -> None:
    plant.append(response_event(1, text="I write to jane@example.org."), thumb_event(1, 1))
    guard = Guard(Scrubber.from_settings(PrivacySettings()))
    for topic in TOPICS:
        Ingest(plant.log, plant.lake, topic, batch_records=10, guard=guard).poll()
    assert left_out(plant) == {"masked": 1}


def test_thumbs_from_before_the_window_are_left_out(plant: Plant) -> None:
    old = event_pb2.EventHeader(created_unix_ms=NOW_UNIX_MS - 31 * DAY_MS)
    kept = event_pb2.EventHeader(created_unix_ms=NOW_UNIX_MS - 29 * DAY_MS)
    plant.append(response_event(1, header=old), response_event(2, header=old))
    plant.append(thumb_event(1, 1, header=old), thumb_event(2, 2, header=kept))
    assert [row["response_id"] for row in rows(plant)] == ["r-2"]
    assert left_out(plant) == {"outside_window": 1}


def test_each_person_gives_one_example_for_a_response(plant: Plant) -> None:
    plant.append(response_event(1))
    plant.append(
        thumb_event(1, 1, end_user="ann"), thumb_event(2, 1, end_user="bob"), thumb_event(4, 1, end_user="ann")
    )
    assert sorted((row["end_user"], row["label"]) for row in rows(plant)) == [("ann", "liked"), ("bob", "liked")]


def test_feedback_that_names_no_persona_is_its_responses_personas(plant: Plant) -> None:
    nobody = thumb_event(1, 1)
    nobody.ClearField("persona")
    nobody.ClearField("conversation_id")
    plant.append(response_event(1, persona="tutor"), nobody)
    plant.ingest_all()
    assert plant.build("concierge").table().num_rows == 0
    assert plant.build("tutor").table()["conversation_id"].to_pylist() == ["c-1"]


def test_an_event_that_reached_the_lake_twice_counts_once(plant: Plant) -> None:
    plant.append(response_event(1), thumb_event(1, 1))
    plant.ingest_all()
    for name, table in (("responses", plant.lake.responses), ("feedback", plant.lake.feedback)):
        (row,) = table.handle.to_pyarrow_table().to_pylist()
        # Sent again, to another partition, which another aggregator reads.
        table.append(to_arrow(name, [{**row, "log_partition": 1}]), "elsewhere/1", 0, 1)
        assert table.read(["event_id"]).num_rows == 2
    assert len(rows(plant)) == 1


def asked(number: int, made_ms: int, **changes: Any) -> event_pb2.ResponseEvent:
    """An answer to the client's request `same`, whose prompt is the same whatever the number."""
    event = response_event(number, client_request_id="same", **changes)
    event.prompt_token_ids[:] = [1, 2, 3]
    event.header.created_unix_ms = NOW_UNIX_MS + made_ms
    return event


def test_of_a_request_that_two_replicas_answered_the_first_answer_counts_in_every_order(plant: Plant) -> None:
    plant.append(asked(2, 60_000), asked(1, 0), thumb_event(2, 2), thumb_event(4, 1))
    assert [row["response_id"] for row in rows(plant)] == ["r-1"]
    assert left_out(plant) == {"unknown_response": 1}


def test_alternatives_of_one_request_are_no_repetition(plant: Plant) -> None:
    plant.append(asked(1, 0, request_group="g"), asked(2, 5, request_group="g", alternative=1))
    plant.append(thumb_event(2, 1), thumb_event(4, 2))
    assert len(rows(plant)) == 2


@pytest.mark.parametrize(
    "other",
    [
        asked(2, DAY_MS + 1),
        asked(2, 5, header=event_pb2.EventHeader(tenant="other")),
        response_event(2, client_request_id="same"),
        asked(2, 5, source=event_pb2.SOURCE_IMPORTED),
    ],
    ids=["a day later", "another tenant's", "another prompt", "imported"],
)
def test_a_request_id_that_is_used_for_something_else_is_no_repetition(
    plant: Plant, other: event_pb2.ResponseEvent
) -> None:
    plant.append(asked(1, 0), other, thumb_event(2, 1))
    plant.append(thumb_event(4, 2, header=event_pb2.EventHeader(tenant=other.header.tenant)))
    assert "unknown_response" not in left_out(plant)


def test_an_answer_that_was_aborted_does_not_stand_in_the_way_of_the_next(plant: Plant) -> None:
    plant.append(asked(1, 0, finish_reason=event_pb2.FINISH_REASON_ABORTED), asked(2, 5))
    plant.append(thumb_event(2, 1), thumb_event(4, 2))
    assert [row["response_id"] for row in rows(plant)] == ["r-2"]
    assert left_out(plant) == {"aborted": 1}


def test_what_was_left_out_is_kept_by_feedback_with_its_reason(plant: Plant) -> None:
    plant.append(response_event(1, finish_reason=event_pb2.FINISH_REASON_ABORTED), response_event(2))
    plant.append(thumb_event(1, 1), thumb_event(2, 2), thumb_event(3, 3))
    plant.ingest_all()
    plant.build()
    (kept,) = list_left_out(plant.folder / "datasets")
    assert (kept.tenant, kept.persona, kept.recipe) == ("default", "concierge", "thumbs")
    assert dict(kept.rows()) == {"feedback-1": "aborted", "feedback-3": "unknown_response"}

    plant.append(response_event(3))
    plant.ingest_all()
    plant.build()
    (again,) = list_left_out(plant.folder / "datasets")
    assert dict(again.rows()) == {"feedback-1": "aborted"}
    assert again.stamp != kept.stamp
    again.file.write_bytes(again.file.read_bytes()[:-9])
    with pytest.raises(DataLoss, match="is damaged"):
        list(again.rows())
