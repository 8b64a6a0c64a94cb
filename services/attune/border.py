"""The gRPC border: who is let in, and the one place where errors become statuses."""

import asyncio
import contextlib
import functools
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from attune import metrics
from attune.access import CALLER, Authenticator, Caller, admit
from attune.errors import AttuneError, DeadlineExceeded, InvalidInput, Unavailable, status_of
from attune.logs import log_failure

logger = logging.getLogger(__name__)

# gRPC turns details above 16 KiB into RESOURCE_EXHAUSTED; sentences are short by far.
_MAX_DETAILS_CHARACTERS = 500

# The core ends a call at its deadline by a clock that is not quite the interpreter's.
_DEADLINE_SLACK_SECONDS = 0.05

_INVALID, _EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT.name, grpc.StatusCode.RESOURCE_EXHAUSTED.name

_Behaviour = Callable[[Any, Any], Any]


class Gated(ABC):
    """A service that can tell before a request has been read that it has no room for it."""

    @abstractmethod
    def check_room(self, caller: Caller) -> None:
        """Raises what any call of this caller would be refused with now."""


class _Malformed:
    """Stands for bytes that are no message, until the handler can refuse them."""


class Border(grpc.aio.ServerInterceptor):
    """Wraps deserialiser and handler of every method.

    A caller without the right to a method, or for whom there is no room, is refused before anything of the request is
    read: a server that is asked for ten times what it can do answers mostly that.

    AttuneError becomes its status; malformed bytes INVALID_ARGUMENT; anything else INTERNAL, without its text. A
    cancellation that did not come from the caller becomes UNAVAILABLE: escaping, it would leave the caller waiting
    for its deadline.
    """

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method.removeprefix("/")
        kinds = (
            "stream" if handler.request_streaming else "unary",
            "stream" if handler.response_streaming else "unary",
        )
        behaviour = getattr(handler, "_".join(kinds))
        wrap = getattr(grpc, f"{'_'.join(kinds)}_rpc_method_handler")
        try:
            # The handler runs in this task, and finds it there.
            CALLER.set(self._let_in(method, behaviour, handler_call_details.invocation_metadata))
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status
            if not isinstance(error, AttuneError):
                log_failure(logger, method, error)
            # As if it took a stream: then gRPC does not wait for the request.
            return grpc.stream_stream_rpc_method_handler(_refusing(error, method))
        wrapped: grpc.RpcMethodHandler[Any, Any] = wrap(
            _guard(behaviour, method, request_streaming=handler.request_streaming),
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return wrapped

    def _let_in(self, method: str, behaviour: _Behaviour, metadata: Iterable[tuple[str, str]]) -> Caller:
        credential = next((value for name, value in metadata if name == "authorization"), None)
        caller = admit(self._authenticator, method, credential)
        service = getattr(behaviour, "__self__", None)
        if isinstance(service, Gated):
            service.check_room(caller)
        return caller


def _refusing(error: Exception, method: str) -> _Behaviour:
    code, sentence, trailing = _told(error)

    async def refuse(_requests: Any, context: Any) -> None:
        # Not by abort(), whose exception costs a fifth of all that a refusal does.
        context.set_code(code)
        context.set_details(sentence)
        context.set_trailing_metadata(trailing)
        metrics.REQUESTS.labels(method, code.name).inc()

    return refuse


def _tolerant(deserialise: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return deserialise(data)
        except Exception:  # noqa: BLE001 - protobuf's DecodeError and UnicodeDecodeError have no common base
            return _Malformed()

    return read


def _guard(behaviour: _Behaviour, method: str, *, request_streaming: bool) -> _Behaviour:
    async def call(request: Any, context: Any) -> Any:
        status = "OK"
        try:
            outcome = behaviour(_checked_stream(request) if request_streaming else _checked(request), context)
            if not inspect.isasyncgen(outcome):
                return await outcome
            # Closed here and now: left to the garbage collector, a handler would hold what it has until then.
            async with contextlib.aclosing(outcome) as messages:
                async for message in messages:
                    await context.write(message)
            return None
        except grpc.aio.AbortError:
            status = getattr(context.code(), "name", "UNKNOWN")
            raise
        except AttuneError as error:
            status = status_of(error).grpc
            await context.abort(*_told(error))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                status = _status_of_gone(context)
                raise
            status = "UNAVAILABLE"
            await context.abort(*_told(Unavailable("the call was ended by the server")))
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status
            if context.done():
                # Writing to a caller that has just gone.
                status = _status_of_gone(context)
                return None
            status = "INTERNAL"
            log_failure(logger, method, error)
            await context.abort(*_told(error))
        finally:
            metrics.REQUESTS.labels(method, status).inc()

    return call


def _checked(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise InvalidInput("the request's bytes are not a message of this method")
    return request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)


def _status_of_gone(context: Any) -> str:
    """What a caller that waits no longer has seen."""
    remaining = context.time_remaining()
    return "DEADLINE_EXCEEDED" if remaining is not None and remaining < _DEADLINE_SLACK_SECONDS else "CANCELLED"


def _told(error: Exception) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Status, sentence and trailing metadata; of what nobody thought of only that it happened."""
    name = status_of(error).grpc
    if not isinstance(error, AttuneError):
        return grpc.StatusCode[name], "internal error", ()
    sentence = error.message[:_MAX_DETAILS_CHARACTERS]
    retry_after_seconds = None if isinstance(error, DeadlineExceeded) else error.retry_after_seconds
    details = _details(name, sentence, error.field, retry_after_seconds)
    return grpc.StatusCode[name], sentence, (("grpc-status-details-bin", details),)


@functools.lru_cache(maxsize=256)
def _details(name: str, sentence: str, field: str | None, retry_after_seconds: float | None) -> bytes:
    """A google.rpc.Status as bytes; a server that is full says the same thing very often."""
    details = status_pb2.Status(code=grpc.StatusCode[name].value[0], message=sentence)
    _pack(details, error_details_pb2.ErrorInfo(reason=name, domain="attune"))
    if name == _INVALID and field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=sentence)
        _pack(details, error_details_pb2.BadRequest(field_violations=[violation]))
    if name == _EXHAUSTED:
        quota = error_details_pb2.QuotaFailure.Violation(subject=field or "server", description=sentence)
        _pack(details, error_details_pb2.QuotaFailure(violations=[quota]))
    if retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(retry_after_seconds * 1000))
        _pack(details, error_details_pb2.RetryInfo(retry_delay=delay))
    data: bytes = details.SerializeToString()
    return data


def _pack(details: Any, message: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(message)
    details.details.append(packed)
