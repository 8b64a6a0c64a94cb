"""What the recipe `prompts` lets a policy practise on."""

import pytest

from attune.v1 import event_pb2
from tests.aggregator.plant import Plant
from tests.aggregator.recipes.conversation import DAY_MS, Table, answer, assistant, imported, user
from tests.lake.events import NOW_UNIX_MS, PLAIN


@pytest.fixture
def prompts(plant: Plant) -> Table:
    return Table(plant, "prompts")


def test_a_row_has_the_prompt_and_nothing_of_the_answer(prompts: Table) -> None:
    prompts.put(answer(3, "Why?", tools=[event_pb2.Tool(name="cab", description="d", parameters_json="{}")]))
    (row,) = prompts.rows()
    assert len(row.pop("example_id")) == 32
    assert row.pop("split") in ("train", "heldout")
    assert row == {
        "label": "single_turn",
        "weight": 1.0,
        "weighed_by": [],
        "people": ["user-3"],
        "feedback_ids": [],
        "response_ids": ["r-3"],
        "persona": "concierge",
        "persona_version": "v1",
        "conversation_id": "c-3",
        "turn": 1,
        "messages": [{"role": "user", "content": "Why?", **PLAIN}],
        "tools": [{"name": "cab", "description": "d", "parameters_json": "{}"}],
        "prompt_token_ids": [1, 2, 3],
        "base_model_hash": "b" * 64,
        "chat_template_hash": "c" * 64,
        "created_unix_ms": NOW_UNIX_MS + 3,
    }


def test_what_one_person_asks_again_is_one_row_and_the_newest(prompts: Table) -> None:
    prompts.put(answer(1), answer(11), answer(21), answer(31, "Else?"))
    assert [row["response_ids"] for row in prompts.rows()] == [["r-21"], ["r-31"]]
    assert prompts.left_out() == {"repeated": 2}


def test_what_many_ask_weighs_as_much_as_what_one_asks(prompts: Table) -> None:
    prompts.put(answer(1), answer(2), answer(3), answer(4), answer(5, "Else?"))
    assert [row["weight"] for row in prompts.rows()] == [0.25] * 4 + [1.0]


def test_where_nobody_is_named_a_conversation_is_a_person(prompts: Table) -> None:
    nameless = [answer(n, conversation_id=f"c-{n % 2}") for n in range(4)]
    for event in nameless:
        event.end_user = ""
    prompts.put(*nameless)
    assert [row["response_ids"] for row in prompts.rows()] == [["r-2"], ["r-3"]]


def test_context_makes_another_prompt_and_is_kept(prompts: Table) -> None:
    context = [user("Hi"), assistant("Hello."), user("Hello?")]
    prompts.put(answer(1), answer(11, context, turn=2))
    rows = prompts.rows()
    assert [row["label"] for row in rows] == ["single_turn", "multi_turn"]
    assert [message["content"] for message in rows[1]["messages"]] == ["Hi", "Hello.", "Hello?"]


def test_prompts_of_answers_that_broke_off_and_imported_ones_count(prompts: Table) -> None:
    prompts.put(answer(1, finish_reason=event_pb2.FINISH_REASON_ABORTED), imported(2, "Else?"))
    assert [row["prompt_token_ids"] for row in prompts.rows()] == [[1, 2, 1], []]


def test_consent_the_persona_and_the_window_hold(prompts: Table) -> None:
    prompts.put(answer(1, "A?", consent=event_pb2.Consent(train=False)))
    prompts.put(answer(2, "B?", consent=event_pb2.Consent(store=False)))
    prompts.put(answer(3, "C?", persona="tutor"), answer(4, "D?", header=event_pb2.EventHeader(tenant="other")))
    prompts.put(answer(5, "E?", header=event_pb2.EventHeader(created_unix_ms=NOW_UNIX_MS - 31 * DAY_MS)))
    assert prompts.rows() == []
    assert prompts.left_out() == {"not_consented": 1, "not_stored": 1}
