"""From a failed call back to the error that the server raised."""

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from attune.errors import STATUS, AttuneError, DeadlineExceeded, Unavailable

_BY_CODE = {status.grpc: error for error, status in STATUS.items()}


class Cancelled(AttuneError):
    """The call was cancelled on this side."""


class ServerError(AttuneError):
    """The server failed in a way that it does not explain."""


def error_of(failure: grpc.RpcError, address: str) -> AttuneError:
    """The typed error for a failed call, with field and time to wait where the server gave them.

    Statuses outside the table become ServerError.
    """
    code, sentence = failure.code(), failure.details() or ""
    details = _details(failure.trailing_metadata() or ())
    if code is grpc.StatusCode.CANCELLED:
        return Cancelled("the call was cancelled")
    if not details and code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"cannot reach {address}{_reason(sentence)}")
    if not details and code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"no answer from {address} before the deadline")
    error = _BY_CODE.get(code.name)
    if error is None:
        return ServerError(f"{address} failed: {code.name} {sentence}".rstrip())
    return error(sentence, field=_field(details), retry_after_seconds=_retry_after_seconds(details))


# What gRPC says of a connection that failed, and what it means. A server that asks for a certificate just hangs up.
_REASONS = (
    ("Hostname Verification Check failed", " over TLS: its certificate is for another name"),
    ("WRONG_VERSION_NUMBER", " over TLS: it speaks plain text"),
    ("SSL_ERROR_SSL", " over TLS: its certificate is not of an authority that is trusted here"),
    ("Socket closed", ": it hangs up; it may want TLS, or a client's certificate"),
    ("Connection reset", ": it hangs up; it may want TLS, or a client's certificate"),
)


def _reason(sentence: str) -> str:
    return next((meaning for sign, meaning in _REASONS if sign in sentence), "; is `attune up` running there?")


def _details(metadata: Any) -> list[object]:
    """The server's machine-readable details; none when gRPC itself gave up."""
    for key, value in metadata:
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            found = []
            for packed in status.details:
                for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
                    message = kind()
                    if packed.Unpack(message):
                        found.append(message)
            return found
    return []


def _field(details: list[object]) -> str | None:
    for detail in details:
        if isinstance(detail, error_details_pb2.BadRequest) and detail.field_violations:
            return str(detail.field_violations[0].field)
    return None


def _retry_after_seconds(details: list[object]) -> float | None:
    for detail in details:
        if isinstance(detail, error_details_pb2.RetryInfo):
            return float(detail.retry_delay.ToMilliseconds()) / 1000
    return None
