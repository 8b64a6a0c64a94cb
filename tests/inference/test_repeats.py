"""The SDK repeats a request whose answer got lost, and the server gives the first answer again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from attune.client import AsyncClient, Retry
from attune.client.request import signal_request
from attune.v1 import event_pb2
from tests.inference.house import House

PATIENT = Retry(attempts=20, first_pause_seconds=0.05)


@contextlib.asynccontextmanager
async def losing(port: int, done: Callable[[], object]) -> AsyncIterator[int]:
    """A way to the server that gives back nothing of its first connection, and breaks it once it is `done`."""
    connections = 0
    copying: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lost: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if lost and done():
                    break
                writer.write(data)
                await writer.drain()
        writer.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        lost = connections == 1
        for task in (
            asyncio.create_task(copy(reader, up_writer, lost=False)),
            asyncio.create_task(copy(up_reader, writer, lost=lost)),
        ):
            copying.add(task)

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as listening:
        yield int(listening.sockets[0].getsockname()[1])
    for task in copying:
        task.cancel()
    await asyncio.gather(*copying, return_exceptions=True)
    assert connections > 1


async def test_an_answer_that_was_lost_on_the_way_is_logged_once_and_given_again(house: House) -> None:
    async with (
        losing(house.port, house.responses) as port,
        AsyncClient(f"127.0.0.1:{port}", api_key=house.api_key, retry=PATIENT) as client,
    ):
        answer = await client.chat("hello there", end_user_id="u-1")
    (logged,) = house.responses()
    assert (answer.response_id, answer.text) == (logged.response_id, logged.text)


async def test_a_vote_whose_reply_was_lost_on_the_way_counts_once(house: House) -> None:
    async with AsyncClient(f"127.0.0.1:{house.port}", api_key=house.api_key) as client:
        answer = await client.chat("hello there", end_user_id="u-1")
    async with (
        losing(house.port, house.thumbs) as port,
        AsyncClient(f"127.0.0.1:{port}", api_key=house.api_key, retry=PATIENT) as client,
    ):
        feedback_id = await client.submit(signal_request(answer.feedback_token, thumb=event_pb2.THUMB_UP))
    (logged,) = house.thumbs()
    assert logged.header.event_id == feedback_id
