"""What can go wrong, and the one table from errors to gRPC and HTTP status."""

from dataclasses import dataclass


class AttuneError(Exception):
    """An error with a sentence for whoever caused it.

    The message says what was wrong, the value, and the limit or the remedy. It never holds a prompt, a response or a
    secret, because it is sent to callers and written to logs.
    """

    def __init__(self, message: str, *, field: str | None = None, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_seconds = retry_after_seconds


class InvalidInput(AttuneError):
    """What was sent is not acceptable, whatever the state of the system."""


class Unauthenticated(AttuneError):
    """No credentials, or credentials that are not ours."""


class PermissionDenied(AttuneError):
    """The caller is known and may not do this."""


class NotFound(AttuneError):
    """No such thing, or not for this tenant: the two are never told apart."""


class AlreadyExists(AttuneError):
    """The same id was used before for something else."""


class Aborted(AttuneError):
    """Another call is at it; trying again later may succeed."""


class FailedPrecondition(AttuneError):
    """The system's state has to change before this can be done."""


class ResourceExhausted(AttuneError):
    """A limit of the caller's, or of the whole server, is reached."""


class Unavailable(AttuneError):
    """Not able to serve at this moment; the same call may succeed later."""


class DeadlineExceeded(AttuneError):
    """The caller's deadline passed before the work was done."""


class DataLoss(AttuneError):
    """Stored data is damaged: a checksum, a signature or a format does not hold."""


@dataclass(frozen=True)
class Status:
    """What a caller sees: the name of a gRPC status code, and an HTTP status."""

    grpc: str
    http: int


STATUS: dict[type[AttuneError], Status] = {
    InvalidInput: Status("INVALID_ARGUMENT", 400),
    Unauthenticated: Status("UNAUTHENTICATED", 401),
    PermissionDenied: Status("PERMISSION_DENIED", 403),
    NotFound: Status("NOT_FOUND", 404),
    AlreadyExists: Status("ALREADY_EXISTS", 409),
    Aborted: Status("ABORTED", 409),
    FailedPrecondition: Status("FAILED_PRECONDITION", 412),
    ResourceExhausted: Status("RESOURCE_EXHAUSTED", 429),
    Unavailable: Status("UNAVAILABLE", 503),
    DeadlineExceeded: Status("DEADLINE_EXCEEDED", 504),
    DataLoss: Status("DATA_LOSS", 500),
}

INTERNAL = Status("INTERNAL", 500)


def status_of(error: Exception) -> Status:
    """The status for an error, by its nearest class; what is not in the table is internal, and not for callers."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), INTERNAL)
