"""Streams in which each request gets one result, in the order sent."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

_Request = TypeVar("_Request")
_Result = TypeVar("_Result")

# Requests of one stream that are on their way at once, so that they share a commit.
_AT_ONCE = 256


async def answered_in_order(
    requests: AsyncIterator[_Request], answer: Callable[[int, _Request], Awaitable[_Result]]
) -> AsyncIterator[_Result]:
    """`answer` gets each request's number and must not raise for what is wrong with a request."""
    waiting: asyncio.Queue[asyncio.Future[_Result] | None] = asyncio.Queue()
    # The room is bounded, not the queue: the end must get in when nobody reads any more.
    room = asyncio.Semaphore(_AT_ONCE)

    async def take() -> None:
        index = 0
        try:
            async for request in requests:
                await room.acquire()
                waiting.put_nowait(asyncio.ensure_future(answer(index, request)))
                index += 1
        finally:
            waiting.put_nowait(None)

    taking = asyncio.create_task(take())
    try:
        while (result := await waiting.get()) is not None:
            yield await result
            room.release()
        await taking
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
