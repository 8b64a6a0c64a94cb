"""A running service, as commands ask it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attune.client.authorized import Authorized
    from attune.settings import Settings


@contextmanager
def asked(settings: "Settings", service: str, server: str, stub: Callable[[Any], Any]) -> "Iterator[Authorized]":
    """A service's stub, with the key of this machine; a failed call becomes the error that the service raised.

    `server` is where it is; empty for the `attune up` of the data folder.
    """
    import grpc

    from attune.client.authorized import Authorized
    from attune.client.errors import error_of
    from attune.client.place import place_of

    where = place_of(settings, service, server)
    with where.channel() as channel:
        try:
            yield Authorized(stub(channel), where.api_key)
        except grpc.RpcError as failure:
            raise error_of(failure, where.address) from None
