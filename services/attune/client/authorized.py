"""Stubs that present an API key with every call."""

from typing import Any

from attune.errors import InvalidInput


class Authorized:
    """A stub whose calls carry `authorization: Bearer <key>`; without a key they carry nothing.

    Raises InvalidInput for what no key can be.
    """

    def __init__(self, stub: Any, api_key: str) -> None:
        if not (api_key.isascii() and api_key.isprintable()):
            raise InvalidInput("the API key holds characters that no key has; it looks like ak-...", field="api_key")
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._stub, name)

        def authorized(request: Any, **options: Any) -> Any:
            return call(request, metadata=(*self._metadata, *options.pop("metadata", ())), **options)

        # The next call finds it without coming here.
        setattr(self, name, authorized)
        return authorized
