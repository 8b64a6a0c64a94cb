"""Keys for tests: a store with one key of every role, and a channel that presents it with every call."""

from pathlib import Path
from typing import Any

import grpc

from attune.access import Role
from attune.ids import DEFAULT_TENANT
from attune.personas.api_keys import KeyStore


def key_store(folder: Path, tenant: str = DEFAULT_TENANT) -> tuple[KeyStore, str]:
    """A store in the data folder, and a key of the tenant with every role."""
    store = KeyStore(folder / "access")
    return store, store.create(tenant, tuple(Role))


def metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {api_key}"),)


def keyed_channel(address: str, api_key: str, **arguments: Any) -> grpc.aio.Channel:
    """A channel whose calls carry the key, raw ones too."""
    return grpc.aio.insecure_channel(
        address, interceptors=[kind(api_key) for kind in (_UnaryUnary, _UnaryStream, _StreamStream)], **arguments
    )


class _Presenting:
    def __init__(self, api_key: str) -> None:
        self._metadata = metadata(api_key)

    def _with_key(self, details: Any) -> Any:
        return details._replace(metadata=grpc.aio.Metadata(*(details.metadata or ()), *self._metadata))


class _UnaryUnary(_Presenting, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._with_key(client_call_details), request)


class _UnaryStream(_Presenting, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._with_key(client_call_details), request)


class _StreamStream(_Presenting, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self._with_key(client_call_details), request_iterator)
