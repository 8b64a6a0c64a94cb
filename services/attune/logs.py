"""Logs are events with ids, one JSON line each, on standard error; never a prompt, a response or a secret."""

import logging
import os
import sys

from pythonjsonlogger.json import JsonFormatter


def configure_logging(service: str, level: str = "INFO") -> None:
    """Sends this process's logs to standard error as JSON lines that name the service.

    Fields are given with `extra`: `logger.info("swap finished", extra={"policy_id": "p-000007"})`. Libraries are
    heard from WARNING upwards only: at lower levels some of them print payloads.
    """
    # gRPC's core would write a line of its own for each handshake that fails, and anybody can make one fail.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            static_fields={"service": service},
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("attune").setLevel(level)
