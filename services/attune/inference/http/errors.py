"""Errors in OpenAI's shape."""

import math
from typing import Any

from starlette.responses import JSONResponse

from attune.errors import AttuneError, status_of

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def error_body(error: AttuneError) -> dict[str, Any]:
    status = status_of(error)
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(status.http, "server_error" if status.http >= 500 else "invalid_request_error"),
            "param": error.field,
            "code": status.grpc.lower(),
        }
    }


def error_response(error: AttuneError) -> JSONResponse:
    headers = {}
    if error.retry_after_seconds is not None:
        headers = {
            "retry-after": str(math.ceil(error.retry_after_seconds)),
            "retry-after-ms": str(math.ceil(error.retry_after_seconds * 1000)),
        }
    if status_of(error).http == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status_of(error).http, headers)
