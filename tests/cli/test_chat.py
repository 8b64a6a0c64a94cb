import asyncio
import codecs
import os
import pty
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from attune import rpc
from attune.runtime import clear_endpoints, write_endpoints
from attune.v1 import dataset_pb2, dataset_pb2_grpc, event_pb2
from tests.client import scripted_server
from tests.client.scripted_server import ScriptedChat
from tests.keyed import key_store

DEADLINE_SECONDS = 20
INTERRUPT = b"\x03"
END = b"\x04"


@pytest.fixture
def servicer() -> ScriptedChat:
    return ScriptedChat()


@pytest_asyncio.fixture
async def address(servicer: ScriptedChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    store, api_key = key_store(tmp_path)
    monkeypatch.setenv("ATTUNE_API_KEY", api_key)
    server, address = await scripted_server.start(servicer, store)
    yield address
    await server.stop(None)


async def chat(address: str, *options: str, **streams: int) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "attune.cli.main", "chat", "--server", address, "--end-user", "ann", *options),
        **(streams or {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}),
        start_new_session=True,
    )


async def piped(address: str, text: str, *options: str) -> tuple[int | None, str, str]:
    process = await chat(address, *options)
    said, complaint = await asyncio.wait_for(process.communicate(text.encode()), DEADLINE_SECONDS)
    return process.returncode, said.decode(), complaint.decode()


class Terminal:
    """`attune chat` on a terminal of its own."""

    def __init__(self, process: Process, descriptor: int) -> None:
        self.process = process
        self.shown = ""
        self._descriptor = descriptor
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        os.set_blocking(descriptor, False)

    def type(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    async def until(self, condition: Callable[[str], bool]) -> None:
        deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
        while not condition(self.shown):
            assert asyncio.get_running_loop().time() < deadline, self.shown
            try:
                self.shown += self._decoder.decode(os.read(self._descriptor, 65536))
            except BlockingIOError:
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def terminal(address: str) -> AsyncIterator[Terminal]:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *("setsid", "--ctty", "--wait", sys.executable, "-P", "-m", "attune.cli.main"),
        *("chat", "--server", address, "--persona", "concierge"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    yield Terminal(process, ours)
    if process.returncode is None:
        process.kill()
        await process.wait()
    os.close(ours)


async def test_a_conversation_through_a_pipe(address: str, servicer: ScriptedChat) -> None:
    code, said, complaint = await piped(address, "hello there\n/down too short\nand now\n/quit\nnever sent\n")
    assert (code, complaint) == (0, "")
    assert "hello there" in said
    first, second = servicer.requests
    assert [(turn.role, turn.content) for turn in second.messages] == [
        (event_pb2.ROLE_USER, "hello there"),
        (event_pb2.ROLE_ASSISTANT, "hello there "),
        (event_pb2.ROLE_USER, "and now"),
    ]
    assert (first.conversation_id, second.conversation_id, first.end_user_id) == ("", "c-1", "ann")
    assert [(vote.thumb, vote.comment) for vote in servicer.feedback] == [(event_pb2.THUMB_DOWN, "too short")]


async def test_new_forgets_and_persona_turns_to_another(address: str, servicer: ScriptedChat) -> None:
    await piped(address, "one\n/new\ntwo\n/persona tutor\nthree\n/up\n")
    assert [len(request.messages) for request in servicer.requests] == [1, 1, 1]
    assert [request.conversation_id for request in servicer.requests] == ["", "", ""]
    assert [request.persona for request in servicer.requests] == ["", "", "tutor"]
    assert len(servicer.feedback) == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hi\n/persona nobody\nhi\n", "attune: no such persona\n"),
        ("/up\n", "attune: there is no answer to vote on yet\n"),
        ("hi\n/correct\n", "attune: /correct wants a text: what the last answer should have said\n"),
        ("/sing\n", "attune: there is no /sing; /help lists what there is\n"),
        ("a !broken\n", "its response was not acknowledged"),
    ],
)
async def test_an_error_through_a_pipe_ends_it(address: str, text: str, complaint: str) -> None:
    code, _, said = await piped(address, text)
    assert code == 1
    assert complaint in said


async def test_what_a_model_writes_does_not_steer_the_terminal(address: str) -> None:
    _, said, _ = await piped(address, "red \x1b[31mrose \x07\x9b2J\n")
    assert "red [31mrose" in said
    assert not {"\x1b", "\x07", "\x9b"} & set(said)


async def test_a_change_of_policy_is_shown_with_the_answer(terminal: Terminal, servicer: ScriptedChat) -> None:
    await terminal.until(lambda shown: "›" in shown)
    terminal.type(b"first\n")
    await terminal.until(lambda shown: "base ·" in shown)
    assert "now answering" not in terminal.shown
    servicer.policy_id = "p-000001"
    terminal.type(b"second\n")
    await terminal.until(lambda shown: "p-000001 ·" in shown)
    assert terminal.shown.count("now answering") == 1
    terminal.type(END)
    assert await asyncio.wait_for(terminal.process.wait(), DEADLINE_SECONDS) == 0


async def test_an_interrupt_stops_the_answer_and_not_the_program(terminal: Terminal, servicer: ScriptedChat) -> None:
    await terminal.until(lambda shown: "›" in shown)
    terminal.type(b"beginning !hang\n")
    await terminal.until(lambda shown: shown.count("beginning") == 2)
    terminal.type(INTERRUPT)
    await terminal.until(lambda shown: "stopped" in shown)
    await asyncio.wait_for(servicer.aborted.wait(), DEADLINE_SECONDS)
    terminal.type(b"again\n")
    await terminal.until(lambda shown: "base ·" in shown)
    assert [turn.content for turn in servicer.requests[-1].messages] == ["again"]
    terminal.type(INTERRUPT)
    await terminal.until(lambda shown: "/quit or Ctrl-D leaves" in shown)
    terminal.type(b"/quit\n")
    assert await asyncio.wait_for(terminal.process.wait(), DEADLINE_SECONDS) == 0


async def test_an_error_on_a_terminal_is_shown_and_the_conversation_goes_on(terminal: Terminal) -> None:
    await terminal.until(lambda shown: "›" in shown)
    terminal.type(b"/persona nobody\nhello\n")
    await terminal.until(lambda shown: "no such persona" in shown)
    terminal.type(b"/help\n/persona tutor\nhello\n")
    await terminal.until(lambda shown: "base ·" in shown)
    assert "/down [why]" in terminal.shown


class ScriptedReceipts(dataset_pb2_grpc.ReceiptServiceServicer):
    """Knows the feedback `f-1` alone."""

    def __init__(self) -> None:
        self.asked: list[dataset_pb2.GetReceiptsRequest] = []

    async def GetReceipts(
        self, request: dataset_pb2.GetReceiptsRequest, context: Any
    ) -> dataset_pb2.GetReceiptsResponse:
        self.asked.append(request)
        receipt = dataset_pb2.Receipt(feedback_id="f-1", kind="thumb", state=dataset_pb2.Receipt.STATE_COUNTS)
        receipt.left_out.add(recipe="thumbs", reason="not_consented", sentence="learning from it was denied")
        return dataset_pb2.GetReceiptsResponse(receipts=[receipt])


@pytest_asyncio.fixture
async def desk(address: str, tmp_path: Path) -> AsyncIterator[ScriptedReceipts]:
    """A data folder whose ring is the scripted chat and the scripted receipts."""
    receipts = ScriptedReceipts()
    server = rpc.Server(key_store(tmp_path)[0], max_message_bytes=1 << 16)
    server.add(dataset_pb2_grpc.add_ReceiptServiceServicer_to_server, receipts)
    port = server.bind("127.0.0.1", 0, None)
    await server.start()
    write_endpoints(tmp_path, "inference", grpc=int(address.rpartition(":")[2]))
    write_endpoints(tmp_path, "aggregator", grpc=port)
    yield receipts
    await server.stop(None)


async def told(data: Path, text: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "attune.cli.main", "chat", "--data", str(data), "--persona", "tutor"),
        **{"stdin": PIPE, "stdout": PIPE, "stderr": PIPE},
    )
    said, complaint = await asyncio.wait_for(process.communicate(text.encode()), DEADLINE_SECONDS)
    return process.returncode, said.decode(), complaint.decode()


async def test_why_says_which_policy_answered_and_what_became_of_the_last_feedback(
    desk: ScriptedReceipts, servicer: ScriptedChat, tmp_path: Path
) -> None:
    servicer.policy_id = "p-000007"
    code, said, complaint = await told(tmp_path, "hello\n/why\n/down\n/new\nagain\n/why\n")
    assert (code, complaint) == (0, "")
    assert said.count("p-000007 answered, r-1\n") == 2
    assert "you have said nothing of an answer yet" in said
    (asked,) = desk.asked
    assert asked.feedback_token == servicer.feedback[0].feedback_token
    assert "feedback f-1 thumb\n  counts\n  left out by thumbs: learning from it was denied\n" in said


async def test_why_tells_feedback_that_is_not_stored_yet(
    desk: ScriptedReceipts, servicer: ScriptedChat, tmp_path: Path
) -> None:
    code, said, _ = await told(tmp_path, "hello\n/down\n/correct better\n/why\n")
    assert code == 0
    assert "feedback f-2\n  not in the lake yet\n" in said


async def test_why_without_an_answer_or_an_aggregator_is_refused(desk: ScriptedReceipts, tmp_path: Path) -> None:
    assert (await told(tmp_path, "/why\n"))[2] == "attune: there is no answer yet\n"
    clear_endpoints(tmp_path, "aggregator")
    assert "aggregator is not running" in (await told(tmp_path, "hi\n/up\n/why\n"))[2]
