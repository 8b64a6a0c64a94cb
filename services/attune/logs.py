"""Logs are events with ids, one JSON line each, on standard error; never a prompt, a response or a secret."""

import logging
import os
import sys
import traceback
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from attune.errors import AttuneError

_MOST_CAUSES = 8


def configure_logging(service: str, level: str = "INFO") -> None:
    """Sends this process's logs to standard error as JSON lines that name the service.

    Fields are given with `extra`: `logger.info("swap finished", extra={"policy_id": "p-000007"})`. Libraries are
    heard from WARNING upwards only: at lower levels some of them print payloads.
    """
    # gRPC's core would write a line of its own for each handshake that fails, and anybody can make one fail.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Events(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            static_fields={"service": service},
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("attune").setLevel(level)


def log_failure(logger: logging.Logger, method: str, error: Exception) -> None:
    """Says that a call failed for a reason that nobody thought of."""
    logger.error("call failed", extra={"method": method, "error": type(error).__name__, "trace": _trace(error)})


class _Events(JsonFormatter):
    """Also what libraries log of exceptions is without what people wrote."""

    def formatException(self, ei: Any) -> str:
        return _trace(ei[1])


def _trace(error: BaseException | None) -> str:
    """Where it was raised and of what kind, causes first; not its words, which may quote what a caller sent.

    Our own errors, and the system's, hold nothing of the kind.
    """
    parts: list[str] = []
    while error is not None and len(parts) < _MOST_CAUSES:
        words = f": {error}" if isinstance(error, AttuneError | OSError) else ""
        parts.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__name__ + words)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\n".join(reversed(parts))
