"""Several streams as one."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")

# Items that wait for the reader; beyond, the streams wait.
_WAITING = 16


async def interleaved(streams: Sequence[AsyncGenerator[_Item, None]]) -> AsyncGenerator[_Item, None]:
    """The items of all streams as they come, each stream's in its order; closes them all however it ends.

    The first stream that fails ends the others, and its error is raised.
    """
    queue: asyncio.Queue[_Item | None] = asyncio.Queue(_WAITING)

    async def pump(stream: AsyncGenerator[_Item, None]) -> None:
        try:
            async with contextlib.aclosing(stream):
                async for item in stream:
                    await queue.put(item)
        finally:
            # Also when it fails: whoever reads must wake to see it. The task is done in the step that puts this.
            await queue.put(None)

    pumps = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        while True:
            item = await queue.get()
            if item is not None:
                yield item
                continue
            for task in pumps:
                if task.done():
                    task.result()
            if all(task.done() for task in pumps) and queue.empty():
                return
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
