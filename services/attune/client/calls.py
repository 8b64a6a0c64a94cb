"""Calls that do the same when they are repeated, made until they succeed or there is no more patience."""

import asyncio
import time
from typing import Any

import grpc

from attune.client.errors import error_of
from attune.client.retry import Patience


def call(method: Any, request: Any, patience: Patience, address: str) -> Any:
    """From a thread. Raises the last failure as an AttuneError."""
    while True:
        try:
            return method(request, timeout=patience.remaining_seconds())
        except grpc.RpcError as failure:
            pause = patience.pause_after(error_of(failure, address))
        time.sleep(pause)


async def call_async(method: Any, request: Any, patience: Patience, address: str) -> Any:
    """From the event loop. Raises the last failure as an AttuneError."""
    while True:
        try:
            return await method(request, timeout=patience.remaining_seconds())
        except grpc.RpcError as failure:
            pause = patience.pause_after(error_of(failure, address))
        await asyncio.sleep(pause)
