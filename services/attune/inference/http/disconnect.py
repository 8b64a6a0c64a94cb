"""Callers that hang up."""

from starlette.types import Receive


async def gone(receive: Receive) -> None:
    """Returns when the caller has gone; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
