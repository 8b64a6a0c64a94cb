import asyncio
from collections.abc import AsyncIterator

import pytest

from attune.inference.in_order import answered_in_order
from tests.inference.waiting import eventually


async def test_a_reader_that_goes_away_ends_the_stream_though_many_requests_wait() -> None:
    never = asyncio.Event()
    full = asyncio.Event()
    asked = 0

    async def requests() -> AsyncIterator[int]:
        for number in range(100_000):
            yield number

    async def answer(index: int, request: int) -> int:
        nonlocal asked
        asked += 1
        full.set()
        await never.wait()
        return request

    async def read() -> None:
        async for _ in answered_in_order(requests(), answer):
            pass

    reading = asyncio.create_task(read())
    await asyncio.wait_for(full.wait(), 10)
    await eventually(lambda: asked >= 256)
    reading.cancel()
    done, _ = await asyncio.wait({reading}, timeout=10)
    assert done, "the stream outlives its reader"
    assert asked == 256, "no more at once than there is room for"
    never.set()


async def test_what_ends_the_requests_ends_the_results() -> None:
    async def requests() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise ConnectionError

    async def answer(index: int, request: int) -> int:
        return request

    results = answered_in_order(requests(), answer)
    assert [await anext(results), await anext(results)] == [1, 2]
    with pytest.raises(ConnectionError):
        await anext(results)
