"""What goes out of the lake, and comes back in the same."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from attune.access import Role
from attune.client.exports import FORMATS, lines_of
from attune.client.imports import read_lines
from attune.errors import InvalidInput
from attune.v1 import dataset_pb2, dataset_pb2_grpc, event_pb2
from tests.aggregator.town import Town
from tests.keyed import metadata
from tests.lake.events import NOW_UNIX_MS, response_event, thumb_event

USER = {"role": "user", "content": "Wie heißt das? 🦊"}
CALL = {"id": "c-1", "type": "function", "function": {"name": "call_cab", "arguments": '{"to": "x"}'}}

RICH = {
    "import_id": "rich",
    "persona": "tutor",
    "messages": [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "error", "tool_call_id": "c-1"},
    ],
    "tools": [{"name": "call_cab", "description": "Calls.", "parameters": {"type": "object"}}],
    "answers": [{"content": "a\n\nb"}, {"content": "", "tool_calls": [CALL], "reasoning_content": "hm"}],
    "feedback": [
        {"answers": [0, 1], "ranks": [1, 1], "end_user_id": "ann"},
        {"answers": [0], "thumb": "up", "end_user_id": "ann", "comment": "nice", "tags": ["great", "too-long"]},
        {"answers": [0], "thumb": "down", "end_user_id": "bob"},
        {"answers": [1], "rating": 2, "end_user_id": "bob", "author": "reviewer", "guideline_version": "g1"},
        {"answers": [1], "correction": "I cannot.", "end_user_id": "bob", "propensity": 0.25},
        {"answers": [0], "annotation": {"start": 0, "end": 2, "tag": "wrong", "note": "n"}, "end_user_id": "ann"},
        {"answers": [0], "outcome": {"name": "solved", "value": False}, "author": "application", "end_user_id": "app"},
        {"answers": [0], "outcome": {"name": "minutes", "value": 2.5}, "author": "application", "end_user_id": "app"},
        {"answers": [0], "implicit": "copied", "end_user_id": "ann"},
        {"answers": [1], "comment": "hm", "end_user_id": "ann"},
    ],
    "source": "teacher",
    "conversation_id": "c-7",
    "end_user_id": "ann",
    "consent": {"store": True, "train": True},
    "metadata": {"app": "1.0", "locale": "de"},
    "created_unix_ms": NOW_UNIX_MS - 5,
}


@pytest_asyncio.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with Town.open(tmp_path / "one") as opened:
        yield opened


@pytest_asyncio.fixture
async def other(tmp_path: Path) -> AsyncIterator[Town]:
    async with Town.open(tmp_path / "other") as opened:
        yield opened


def comparable(lines: list[str]) -> list[Any]:
    """Without what another installation makes anew: when feedback came; and pseudonyms by their order of appearance."""
    people: dict[str, str] = {}

    def named(row: dict[str, Any]) -> dict[str, Any]:
        pseudonym = row.get("end_user_id", "")
        return {**row, "end_user_id": people.setdefault(pseudonym, f"person-{len(people)}")}

    found = []
    for line in lines:
        row = named(json.loads(line))
        said = [{**named(one), "created_unix_ms": 0} for one in row.get("feedback", ())]
        found.append({**row, "feedback": sorted(said, key=lambda one: json.dumps(one, sort_keys=True))})
    return found


async def test_what_was_exported_is_what_was_imported_and_imports_again_to_the_same(town: Town, other: Town) -> None:
    await town.take([json.dumps(RICH)])
    lines = await town.lines()
    (row,) = comparable(lines)
    expected = comparable([json.dumps(RICH)])[0]
    assert {**row, "end_user_id": "", "feedback": []} == {**expected, "end_user_id": "", "feedback": []}
    assert len(row["feedback"]) == len(expected["feedback"])

    await other.take(lines)
    again = await other.lines()
    assert comparable(again) == comparable(lines)
    await other.take(lines)
    assert await other.lines() == again


def rows_of(form: str) -> Iterator[dict[str, Any]]:
    for number in range(5):
        question = f"Question {number}?\nWith ümlauts."
        match form:
            case "hh":
                start = f"\n\nHuman: {question}\n\nAssistant: Well.\n\nHuman: And?\n\nAssistant: "
                yield {"chosen": f"{start}Good {number}", "rejected": f"{start}Bad"}
            case "ultrafeedback":
                scores = {"best": 3.0, "tied": 2.0, "also tied": 2.0, "worst": 1.0}
                completions = [{"response": text, "overall_score": score} for text, score in scores.items()]
                yield {"instruction": question, "completions": completions}
            case "openai-stored":
                yield {
                    "id": f"chatcmpl-{number}",
                    "object": "chat.completion",
                    "created": 1_700_000_000,
                    "model": "concierge",
                    "metadata": {"app": "1"},
                    "messages": [{"role": "user", "content": question}],
                    "choices": [
                        {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"},
                    ],
                }
            case _:
                yield {**RICH, "import_id": f"rich-{number}"}


@pytest.mark.parametrize("form", [name for name in FORMATS if name != "attune"])
async def test_a_file_of_another_shape_comes_out_as_it_went_in(town: Town, form: str) -> None:
    rows = list(rows_of(form))
    await town.take([json.dumps(row) for row in rows], form)
    found = [json.loads(line) for line in await town.lines(form, without_feedback=True)]
    if form == "openai-stored":
        found = [{**row, "created": 1_700_000_000} for row in found]  # the import says when, not the file
    assert sorted(found, key=str) == sorted(rows, key=str)


async def test_consent_is_respected_and_what_stays_behind_is_counted(town: Town) -> None:
    town.plant.append(
        response_event(1),
        response_event(2, consent=event_pb2.Consent(train=False)),
        response_event(3, consent=event_pb2.Consent(store=False)),
        response_event(4, finish_reason=event_pb2.FINISH_REASON_ABORTED),
        *[thumb_event(number, number) for number in range(1, 5)],
    )
    town.plant.ingest_all()
    expected = {"records": 1, "feedback": 1, "not_consented": 1, "not_stored": 1, "aborted": 1}
    assert await town.summary() == expected
    asked_for = {"records": 2, "feedback": 2, "not_stored": 1, "aborted": 1}
    assert await town.summary(not_for_training=True) == asked_for
    (line,) = await town.lines()
    assert json.loads(line)["answers"] == [{"content": "Done. 1"}]
    both = [json.loads(line) for line in await town.lines(not_for_training=True)]
    assert [row.get("consent") for row in both] == [None, {"train": False}]


async def test_only_the_last_word_goes_out_and_nothing_that_was_taken_back(town: Town) -> None:
    town.plant.append(
        response_event(1),
        thumb_event(2, 1),
        thumb_event(3, 1, revision=1),
        thumb_event(4, 1, end_user="ann"),
        thumb_event(6, 1, end_user="ann", revision=1, retracted=True),
    )
    conversation = thumb_event(8, 1, outcome=event_pb2.Outcome(name="solved", flag=True))
    conversation.ClearField("response_id")
    town.plant.append(conversation)
    scattered = thumb_event(10, 1, name="digest")
    entry = event_pb2.Ranking.Entry
    scattered.ranking.entries.extend([entry(response_id="r-1", rank=1), entry(response_id="r-9", rank=2)])
    town.plant.append(scattered)
    town.plant.ingest_all()
    (row,) = [json.loads(line) for line in await town.lines()]
    assert [one["thumb"] for one in row["feedback"]] == ["down"]
    assert await town.summary() == {"records": 1, "feedback": 1, "conversation": 1, "several_requests": 1}


async def test_it_can_be_narrowed_to_a_persona_and_a_time_and_widened_to_what_nobody_spoke_of(town: Town) -> None:
    town.plant.append(*[response_event(n) for n in range(4)], response_event(9, persona="tutor"))
    town.plant.append(thumb_event(1, 1), thumb_event(3, 3), thumb_event(9, 9, persona="tutor"))
    town.plant.ingest_all()

    async def ids(**wanted: Any) -> list[str]:
        return [json.loads(line)["import_id"] for line in await town.lines(**wanted)]

    assert await ids() == ["g-1", "g-3", "g-9"]
    assert await ids(persona="concierge") == ["g-1", "g-3"]
    assert await ids(since_unix_ms=NOW_UNIX_MS + 3) == ["g-3", "g-9"]
    assert await ids(without_feedback=True) == ["g-0", "g-1", "g-2", "g-3", "g-9"]
    assert await ids(persona="nobody") == []


async def test_another_tenant_and_whoever_does_not_operate_get_nothing(town: Town) -> None:
    town.plant.append(response_event(1), thumb_event(1, 1))
    town.plant.ingest_all()
    stranger = town.access.create("acme", tuple(Role))
    _, last = await town.parts(key=stranger, without_feedback=True)
    assert last.summary == dataset_pb2.ExportSummary()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await town.parts(key=town.access.create("default", (Role.CHAT, Role.FEEDBACK, Role.REVIEW)))
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    for wanted in ({"since_unix_ms": -1}, {"persona": "../x"}):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await town.parts(**wanted)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_an_export_that_nobody_reads_on_gives_its_place_back(town: Town) -> None:
    town.plant.append(*[response_event(n, text="x" * 20_000) for n in range(400)])
    town.plant.ingest_all()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{town.port}") as channel:
        stub: Any = dataset_pb2_grpc.ExportServiceStub(channel)
        request = dataset_pb2.ExportRecordsRequest(without_feedback=True)
        calls = [stub.ExportRecords(request, timeout=60, metadata=metadata(town.key)) for _ in range(2)]
        for call in calls:
            assert (await call.read()).start.records == 400
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await town.parts(without_feedback=True)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()
    deadline = asyncio.get_running_loop().time() + 30
    while True:
        try:
            assert (await town.summary(without_feedback=True))["records"] == 400
            break
        except grpc.aio.AioRpcError as busy:
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError("the places were not given back") from busy
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("form", ["hh", "ultrafeedback"])
def test_what_a_shape_has_no_place_for_is_refused_with_a_reason(form: str) -> None:
    record = dataset_pb2.ExportedRecord(
        messages=[event_pb2.Message(role=event_pb2.ROLE_USER, content="q")],
        answers=[event_pb2.Message(role=event_pb2.ROLE_ASSISTANT, content=text) for text in ("a", "b")],
    )
    with pytest.raises(InvalidInput, match="there is no ranking of its answers"):
        lines_of(record, form)
    record.feedback.add(answers=[0, 1], ranks=[1, 2], ranking=True)
    assert len(lines_of(record, form)) == 1
    with_calls = dataset_pb2.ExportedRecord()
    with_calls.CopyFrom(record)
    with_calls.answers[0].tool_calls.add(name="x")
    with pytest.raises(InvalidInput, match="no place for tool calls"):
        lines_of(with_calls, form)
    record.messages.insert(0, event_pb2.Message(role=event_pb2.ROLE_SYSTEM, content="s"))
    with pytest.raises(InvalidInput):
        lines_of(record, form)


@pytest.mark.parametrize("text", ["", " ", "a\n\nHuman: me", "\n\nAssistant: me"])
def test_a_dialogue_that_would_be_read_back_otherwise_is_refused(text: str) -> None:
    record = dataset_pb2.ExportedRecord(
        messages=[event_pb2.Message(role=event_pb2.ROLE_USER, content="q")],
        answers=[event_pb2.Message(role=event_pb2.ROLE_ASSISTANT, content=one) for one in (text, "b")],
    )
    record.feedback.add(answers=[0, 1], ranks=[1, 2], ranking=True)
    with pytest.raises(InvalidInput, match="would not be read back"):
        lines_of(record, "hh")


@pytest.mark.parametrize(
    "start",
    [
        "\n\nHuman: Assistant: hello\n\nAssistant: Human: you said so\n\nHuman: And?\n\nAssistant: ",
        "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nAssistant: Are you there?\n\nHuman: Yes.\n\nAssistant: ",
        "\n\nHuman:  Hi. \n\n\nAssistant: Hello.\n\n\n\nHuman: \nHuman: who?\n\nAssistant:  ",
    ],
    ids=["the other side's name begins a turn", "one side has two turns in a row", "turns are padded"],
)
def test_a_dialogue_is_read_and_written_to_the_byte(start: str) -> None:
    line = json.dumps({"chosen": f"{start}Human: a ", "rejected": f"{start}b"})
    (read,) = read_lines(iter([line.encode()]), "hh", name="f", persona="")
    assert read.record is not None
    request = read.record.request
    record = dataset_pb2.ExportedRecord(messages=request.messages, answers=request.answers)
    record.feedback.add(answers=[0, 1], ranks=[1, 2], ranking=True)
    assert lines_of(record, "hh") == [line]
