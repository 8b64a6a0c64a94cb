"""grpcurl, a client that nobody here wrote: what the server tells of itself is enough to chat and to vote."""

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.inference.house import House

GRPCURL = shutil.which("grpcurl", path=os.pathsep.join([os.environ.get("PATH", ""), str(Path.home() / "go" / "bin")]))

pytestmark = pytest.mark.skipif(
    GRPCURL is None and os.environ.get("CI") != "true",
    reason="needs grpcurl: go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4",
)


async def grpcurl(house: House, *arguments: str, key: str = "", sent: object = None) -> tuple[int, str, str]:
    """Exit status, output, complaints."""
    assert GRPCURL is not None
    command = ["-plaintext", "-emit-defaults", "-max-time", "60"]
    command += ["-H", f"authorization: Bearer {key}"] if key else []
    command += ["-d", json.dumps(sent)] if sent is not None else []
    process = await asyncio.create_subprocess_exec(
        GRPCURL,
        *command,
        f"127.0.0.1:{house.port}",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    told, complained = await asyncio.wait_for(process.communicate(), 90)
    return process.returncode or 0, told.decode(), complained.decode()


def messages(told: str) -> list[dict[str, object]]:
    """The JSON objects of a stream, one after another."""
    found, decoder, rest = [], json.JSONDecoder(), told.strip()
    while rest:
        message, end = decoder.raw_decode(rest)
        found.append(message)
        rest = rest[end:].strip()
    return found


ASKED = {"persona": "concierge", "messages": [{"role": "ROLE_USER", "content": "hello there"}]}


async def test_it_lists_the_services_without_a_key(house: House) -> None:
    status, told, _ = await grpcurl(house, "list")
    assert status == 0
    assert {"attune.v1.ChatService", "attune.v1.FeedbackService", "grpc.health.v1.Health"} <= set(told.split())


async def test_it_streams_a_chat_to_its_end_and_votes(house: House) -> None:
    status, told, complained = await grpcurl(house, "attune.v1.ChatService/StreamChat", key=house.api_key, sent=ASKED)
    assert status == 0, complained
    chunks = messages(told)
    token = chunks[-1]["end"]["feedback_token"]  # type: ignore[index]
    assert any(chunk["text"] for chunk in chunks)
    vote = {"feedback_token": token, "thumb": "THUMB_UP"}
    status, told, complained = await grpcurl(house, "attune.v1.FeedbackService/SubmitFeedback", sent=vote)
    assert status == 0, complained
    assert json.loads(told)["feedback_id"]


async def test_it_is_told_what_is_wrong(house: House) -> None:
    status, _, complained = await grpcurl(house, "attune.v1.ChatService/Chat", sent=ASKED)
    assert status != 0
    assert "Code: Unauthenticated" in complained
    wrong = {**ASKED, "sampling": {"temperature": 9}}
    status, _, complained = await grpcurl(house, "attune.v1.ChatService/Chat", key=house.api_key, sent=wrong)
    assert status != 0
    assert "Code: InvalidArgument" in complained
    assert "sampling.temperature" in complained
