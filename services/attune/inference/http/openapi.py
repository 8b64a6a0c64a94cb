"""The OpenAPI document, made from the bodies and the table of errors."""

import functools
import importlib.metadata
from typing import Any

from pydantic.json_schema import models_json_schema

from attune.inference.http import bodies

_REF = "#/components/schemas/{model}"
_SENTENCES = {
    400: "What was sent is not acceptable.",
    401: "An API key is missing, or it is not one of this installation.",
    403: "The key may not do this, or the feedback token is forged or expired.",
    404: "No such thing, or not of this tenant.",
    405: "The path does not take this method.",
    409: "The request id is in use, or was used for something else.",
    412: "The system's state has to change first.",
    408: "The body did not come whole in time.",
    413: "The body is too large.",
    429: "A limit is reached; Retry-After says when to come back.",
    500: "Something went wrong inside.",
    503: "Not able to serve now; Retry-After says when to come back.",
    504: "The deadline passed.",
}
_READ = (400, 401, 403, 404, 405, 429, 503)
_WRITTEN = (*_READ, 408, 409, 412, 413, 500, 504)


@functools.cache
def openapi() -> dict[str, Any]:
    """OpenAPI 3.1."""
    _, schemas = models_json_schema(
        [(bodies.ChatCompletion, "validation"), (bodies.Feedback, "validation")], ref_template=_REF
    )
    components = {**schemas["$defs"], "Error": _ERROR, "Completion": _COMPLETION, "Models": _MODELS, "Model": _MODEL}
    components |= {"Accepted": _ACCEPTED, "Status": _STATUS}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "attune",
            "version": importlib.metadata.version("attune"),
            "description": "Chat with personas in OpenAI's form, and say what you think of their answers.",
        },
        "paths": {
            "/v1/chat/completions": {
                "post": _operation(
                    "chat",
                    "Answers with a persona; with stream true as server-sent events.",
                    "Completion",
                    _WRITTEN,
                    body="ChatCompletion",
                    parameters=[_HEADER_IDEMPOTENCY, _HEADER_TIMEOUT],
                    streamed=True,
                )
            },
            "/v1/models": {"get": _operation("models", "The tenant's personas.", "Models", _READ)},
            "/v1/models/{model}": {
                "get": _operation("model", "One persona, or persona@policy.", "Model", _READ, parameters=[_PATH_MODEL])
            },
            "/v1/feedback": {
                "post": _operation(
                    "feedback",
                    "Takes one signal about a response; with a feedback token no key is needed.",
                    "Accepted",
                    _WRITTEN,
                    body="Feedback",
                )
            },
            "/healthz": {"get": _operation("healthz", "Whether the process answers.", "Status", _READ)},
            "/readyz": {"get": _operation("readyz", "Whether requests are answered.", "Status", _READ)},
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key, ak-..."}},
        },
    }


def _operation(
    name: str,
    summary: str,
    answer: str,
    errors: tuple[int, ...],
    *,
    body: str = "",
    parameters: list[dict[str, Any]] | None = None,
    streamed: bool = False,
) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": _REF.format(model=answer)}}}
    if streamed:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "security": [{"key": []}, {}],
        "responses": {
            "200": {"description": "It worked.", "content": content},
            **{
                str(status): {
                    "description": _SENTENCES[status],
                    "content": {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}},
                }
                for status in sorted(errors)
            },
        },
    }
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF.format(model=body)}}},
        }
    return operation


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT: dict[str, Any] = {"type": "string"}
_MAYBE_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_ERROR = _object(error=_object(message=_TEXT, type=_TEXT, param=_MAYBE_TEXT, code=_MAYBE_TEXT))
_COMPLETION = _object(
    id=_TEXT,
    object={"const": "chat.completion"},
    created={"type": "integer"},
    model=_TEXT,
    choices={
        "type": "array",
        "items": _object(
            index={"type": "integer"},
            message={"type": "object"},
            finish_reason={"enum": ["stop", "length", "tool_calls"]},
            response_id=_TEXT,
            policy_id=_TEXT,
            feedback_token=_TEXT,
        ),
    },
    usage={"type": "object"},
    conversation_id=_TEXT,
    response_id=_TEXT,
    policy_id=_TEXT,
    feedback_token=_TEXT,
    replayed={"type": "boolean"},
)
_MODEL = _object(
    id=_TEXT,
    object={"const": "model"},
    created={"type": "integer"},
    owned_by=_TEXT,
    persona_version=_TEXT,
    guideline_version=_TEXT,
    feedback_tags={"type": "array", "items": _TEXT},
)
_MODELS = _object(object={"const": "list"}, data={"type": "array", "items": {"$ref": _REF.format(model="Model")}})
_ACCEPTED = _object(feedback_id=_TEXT, duplicate={"type": "boolean"})
_STATUS = _object(status=_TEXT)
_HEADER_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": 128},
    "description": "The application's own id of the request: sent again with the same body it gets the first answer.",
}
_HEADER_TIMEOUT = {
    "name": "Attune-Timeout-Seconds",
    "in": "header",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 3600},
    "description": "After which the generation is ended.",
}
_PATH_MODEL = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
