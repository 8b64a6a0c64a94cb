"""`attune feedback` on a small installation: what goes in comes out, and says what became of it."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from attune.cli.receipts import receipt_lines, response_lines, subject_of
from attune.client import AsyncClient, AsyncReceipts, Client, Receipts
from attune.client.receipts import DatasetUse, LeftOut, Note, PolicyUse, Receipt, aggregator_of
from attune.errors import InvalidInput, NotFound
from attune.runtime import write_endpoints
from attune.v1 import dataset_pb2
from tests.aggregator.town import Town

DEADLINE_SECONDS = 60


@pytest_asyncio.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with Town.open(tmp_path / "data") as opened:
        for service in ("inference", "aggregator"):
            write_endpoints(opened.plant.folder, service, grpc=opened.port)
        yield opened


async def attune(town: Town, *words: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "attune.cli.main", "feedback", *words, "--data", str(town.plant.folder)),
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, "ATTUNE_API_KEY": town.key},
    )
    said, complaint = await asyncio.wait_for(process.communicate(), DEADLINE_SECONDS)
    return process.returncode, said.decode(), complaint.decode()


def row(number: int, **fields: object) -> str:
    answers = [{"content": "Good."}, {"content": "Bad."}]
    feedback = [{"answers": [0, 1], "ranks": [1, 2]}, {"answers": [1], "thumb": "down", "comment": "[red]no[/]"}]
    line = {"import_id": f"i-{number}", "messages": [{"role": "user", "content": f"Question {number}"}]}
    return json.dumps({**line, "answers": answers, "feedback": feedback, **fields})


async def test_a_file_goes_in_and_comes_out_and_goes_in_again_without_adding_anything(
    town: Town, tmp_path: Path
) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("\n".join(row(number) for number in range(3)))
    code, said, _ = await attune(town, "import", str(file))
    assert (code, said) == (
        0,
        "3 lines: 3 imported with 6 answers and 6 feedbacks, 0 were there already, 0 left out\n",
    )
    town.settle()
    assert await attune(town, "export", str(out)) == (0, "", f"3 lines are in {out}\n")
    assert {json.loads(line)["import_id"] for line in out.read_text().splitlines()} == {"i-0", "i-1", "i-2"}
    code, said, _ = await attune(town, "import", str(file))
    assert "0 imported with 0 answers and 0 feedbacks, 3 were there already" in said

    code, said, complaint = await attune(town, "export", "-", "--format", "hh", "--persona", "concierge")
    assert code == 0
    assert sorted(said.splitlines())[0] == json.dumps(
        {
            "chosen": "\n\nHuman: Question 0\n\nAssistant: Good.",
            "rejected": "\n\nHuman: Question 0\n\nAssistant: Bad.",
        }
    )
    assert complaint == "3 lines are in the output\n"
    assert (await attune(town, "export", "-", "--since", "2100-01-01"))[1] == ""


async def test_what_a_shape_has_no_place_for_is_counted(town: Town, tmp_path: Path) -> None:
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    await town.take([row(1), row(2, messages=system), row(3, feedback=[])])
    code, said, complaint = await attune(town, "export", "-", "--format", "hh")
    assert (code, len(said.splitlines())) == (0, 1)
    assert "left out: 1 records: hh has turns of Human and Assistant alone\n" in complaint
    assert len((await attune(town, "export", "-", "--all"))[1].splitlines()) == 3
    assert len((await attune(town, "export", "-", "--format", "openai-stored"))[1].splitlines()) == 3


async def test_an_export_that_is_refused_leaves_the_old_file(town: Town, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    code, _, complaint = await attune(town, "export", str(out), "--persona", "../x")
    assert code == 1
    assert complaint.startswith("attune: persona must be")
    assert out.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["data", "out.jsonl"]


async def test_bad_lines_are_told_by_number_and_strict_imports_nothing(town: Town, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join([row(1), "{", row(2), row(3, persona="nobody"), row(4)]))
    code, said, complaint = await attune(town, "import", str(file), "--strict")
    assert (code, said, complaint) == (1, "", "attune: line 2: not JSON; nothing was imported\n")
    code, said, complaint = await attune(town, "import", str(file))
    assert code == 1
    assert complaint.splitlines() == ["line 2: not JSON", "line 4: no such persona"]
    assert said.startswith("5 lines: 3 imported with 6 answers and 6 feedbacks, 0 were there already, 2 left out")


async def test_receipts_are_told_by_any_id(town: Town) -> None:
    await town.take([row(1)])
    town.plant.lake.reload()
    rows = town.plant.lake.feedback.read(["event_id", "kind", "response_id", "client_feedback_id"]).to_pylist()
    thumb = next(one for one in rows if one["kind"] == "thumb")
    code, said, _ = await attune(town, "receipts", thumb["event_id"])
    assert code == 0
    assert said.splitlines()[0].startswith(f"feedback {thumb['event_id']} thumb · ")
    assert said.splitlines()[1:3] == [
        "  counts",
        "  in no dataset yet: none was built since it came, or no recipe that is built here reads it",
    ]
    for words in ((thumb["client_feedback_id"],), (thumb["event_id"], "--own")):
        code, said, complaint = await attune(town, "receipts", *words)
        assert (thumb["event_id"] in said) == (len(words) == 1)
    assert complaint.startswith("attune: no such feedback")
    code, said, _ = await attune(town, "receipts", thumb["response_id"])
    assert said.startswith(f"response {thumb['response_id']}\n  came from elsewhere as concierge\n")
    assert said.count("feedback ") == 2


async def test_the_sdk_asks_from_threads_and_from_asyncio(town: Town) -> None:
    await town.take([row(1)])
    town.plant.lake.reload()
    rows = town.plant.lake.feedback.read(["event_id"]).to_pylist()
    feedback_id = rows[0]["event_id"]
    address = f"127.0.0.1:{town.port}"

    def ask() -> list[Receipt]:
        with Receipts(address, api_key=town.key) as desk:
            with pytest.raises(NotFound, match="no such feedback"):
                desk.ask(client_feedback_id="nothing")
            with pytest.raises(InvalidInput, match="name one subject"):
                desk.ask()
            return desk.ask(feedback_id=feedback_id)

    (receipt,) = await asyncio.to_thread(ask)
    with Client(address, api_key=town.key, aggregator=address) as client:
        assert await asyncio.to_thread(client.receipts, feedback_id=feedback_id) == [receipt]
    async with AsyncClient(address, api_key=town.key, aggregator=address) as client:
        assert await client.receipts(feedback_id=feedback_id) == [receipt]
    desk = AsyncReceipts(address, api_key=town.key)
    assert await desk.ask(feedback_id=feedback_id) == [receipt]
    with pytest.raises(NotFound):
        await desk.ask(client_feedback_id="nothing")
    await desk.close()
    assert (receipt.feedback_id, receipt.state, receipt.superseded_by) == (feedback_id, "counts", "")
    assert [note.code for note in receipt.notes] == ["no_dataset"]


def test_what_became_of_it_reads_as_sentences() -> None:
    receipt = Receipt(
        feedback_id="f" * 32,
        response_id="r-1",
        kind="outcome",
        name="solved",
        created_unix_ms=0,
        state="superseded",
        superseded_by="e" * 32,
        datasets=tuple(DatasetUse(f"d-{n}", "thumbs", "train" if n else "heldout") for n in range(7)),
        policies=(PolicyUse("p-000002", "train", True), PolicyUse("p-000001", "heldout", None)),
        left_out=(LeftOut("pairs", "tie", "it is a [tie]"),),
        notes=(Note("no_dataset", "none"),),
    )
    assert list(receipt_lines(receipt))[1:] == [
        f"  superseded by {'e' * 32}",
        "  in dataset d-0 [dim](thumbs)[/] [dim]held out: policies are checked against it and never learn from it[/]",
        *(f"  in dataset d-{n} [dim](thumbs)[/]" for n in range(1, 5)),
        "  and in 2 datasets before",
        "  [green]p-000002[/] learned from it; the gate passed it",
        "  [green]p-000001[/] was checked against it; the gate has not spoken yet",
        "  left out by pairs: it is a \\[tie]",
        "  [yellow]none[/]",
    ]
    assert list(response_lines(dataset_pb2.ResponseState(response_id="r-1")))[1:] == ["  not in the lake yet"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("0197c0d2f1a37c3e9a51c7d1e1f0ab42", "feedback_id"),
        (f"r-{'0' * 32}-{'f' * 16}", "response_id"),
        (f"{'A' * 60}.{'b' * 43}", "feedback_token"),
        ("ticket-17", "client_feedback_id"),
        ("r-1", "client_feedback_id"),
    ],
)
def test_an_id_is_known_by_its_looks(text: str, kind: str) -> None:
    assert subject_of(text) == {kind: text}
    assert subject_of(text, own=True) == {"client_feedback_id": text}


def test_the_aggregator_is_looked_for_beside_the_server_that_chats() -> None:
    assert aggregator_of("127.0.0.1:50051") == "127.0.0.1:50052"
    assert aggregator_of("[::1]:9") == "[::1]:50052"
    assert aggregator_of("attune.example.org:443") == "attune.example.org:50052"
