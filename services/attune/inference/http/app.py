"""The routes."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from attune import metrics
from attune.access import Authenticator, Caller, Role, admit
from attune.errors import AttuneError, DeadlineExceeded, InvalidInput, NotFound, status_of
from attune.inference.chat import Chat
from attune.inference.feedback import Feedback
from attune.inference.http import bodies, convert
from attune.inference.http.disconnect import gone
from attune.inference.http.errors import error_response
from attune.inference.http.events import Events
from attune.inference.http.openapi import openapi
from attune.logs import log_failure
from attune.personas import Persona, Personas

logger = logging.getLogger(__name__)

_MAX_TIMEOUT_SECONDS = 3600.0
_TOO_LARGE = 413
_TOO_SLOW = 408

_Body = TypeVar("_Body", bound=BaseModel)
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Limits:
    """What the server takes. A caller has `stall_seconds` to send a body, and to read what a stream wrote."""

    max_body_bytes: int
    stall_seconds: float


def build_app(
    chat: Chat,
    feedback: Feedback,
    personas: Personas,
    authenticator: Authenticator,
    *,
    limits: Limits,
    cors_origins: tuple[str, ...] = (),
) -> Starlette:
    """The application; `chat.admission` says whether it is ready."""
    service = _Service(chat, feedback, personas, authenticator, limits)
    routes = [
        service.route("POST", "/v1/chat/completions", service.chat_completions),
        service.route("GET", "/v1/models", service.models),
        service.route("GET", "/v1/models/{model}", service.model),
        service.route("POST", "/v1/feedback", service.submit_feedback),
        service.route("GET", "/healthz", service.healthz),
        service.route("GET", "/readyz", service.readyz),
        service.route("GET", "/openapi.json", service.openapi),
    ]
    middleware = []
    if cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "idempotency-key"],
            )
        )
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _http_error})


class _Service:
    def __init__(
        self, chat: Chat, feedback: Feedback, personas: Personas, authenticator: Authenticator, limits: Limits
    ) -> None:
        self._chat = chat
        self._feedback = feedback
        self._personas = personas
        self._authenticator = authenticator
        self._limits = limits

    def route(self, method: str, path: str, handler: Callable[[Request, Caller], Awaitable[Response]]) -> Route:
        """A route behind the border: who may, and what an error looks like."""
        name = f"{method} {path}"

        async def endpoint(request: Request) -> Response:
            status = "CANCELLED"
            try:
                caller = admit(self._authenticator, name, request.headers.get("authorization"))
                response = await handler(request, caller)
                status = "OK"
                return response
            except AttuneError as error:
                status = status_of(error).grpc
                return error_response(error)
            except HTTPException:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status
                status = "INTERNAL"
                log_failure(logger, name, error)
                return error_response(AttuneError("internal error"))
            finally:
                metrics.REQUESTS.labels(name, status).inc()

        return Route(path, endpoint, methods=[method])

    async def chat_completions(self, request: Request, caller: Caller) -> Response:
        self._chat.check_room(caller)
        body = await self._read(request, bodies.ChatCompletion)
        asked = convert.chat_request(body, convert.client_request_id(request.headers))
        seconds = _timeout_seconds(request.headers.get("attune-timeout-seconds"))
        created = int(time.time())
        if not body.stream:
            if body.stream_options is not None:
                raise InvalidInput("stream_options needs stream to be true", field="stream_options")
            answer = await _within(request, seconds, self._chat.answer(asked, caller))
            return JSONResponse(convert.completion(answer, body.model, created))
        chunks = self._chat.stream(asked, caller)
        try:
            first = await _within(request, seconds, anext(chunks))
        except BaseException:
            await chunks.aclose()
            raise
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return Events(
            first,
            chunks,
            convert.Chunks(body.model, created),
            include_usage=include_usage,
            stall_seconds=self._limits.stall_seconds,
        )

    async def submit_feedback(self, request: Request, caller: Caller) -> Response:
        body = await self._read(request, bodies.Feedback)
        answer = await self._feedback.submit(convert.feedback_request(body), caller)
        return JSONResponse({"feedback_id": answer.feedback_id, "duplicate": answer.duplicate})

    async def models(self, request: Request, caller: Caller) -> Response:
        found = []
        for persona in self._personas.of(caller.tenant):
            found.append(_model(persona.name, persona))
            if Role.OPERATE in caller.roles:
                shares = self._chat.policies.serving(persona)
                found += [_model(f"{persona.name}@{policy_id}", persona) for policy_id, _ in shares]
        return JSONResponse({"object": "list", "data": found})

    async def model(self, request: Request, caller: Caller) -> Response:
        name, _, policy_id = request.path_params["model"].partition("@")
        persona = self._personas.find(caller.tenant, name)
        if policy_id:
            caller.require(Role.OPERATE)
            if policy_id not in dict(self._chat.policies.serving(persona)):
                raise NotFound("no such model", field="model")
        return JSONResponse(_model(request.path_params["model"], persona))

    async def healthz(self, request: Request, caller: Caller) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(self, request: Request, caller: Caller) -> Response:
        refusal = self._chat.admission.refusal
        if refusal is not None:
            raise refusal
        return JSONResponse({"status": "ready"})

    async def openapi(self, request: Request, caller: Caller) -> Response:
        return JSONResponse(openapi())

    async def _read(self, request: Request, kind: type[_Body]) -> _Body:
        """The body as this type; raises InvalidInput, or _TooLarge before it has all been read."""
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            raise InvalidInput("the body must be application/json", field="content-type")
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.stall_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > self._limits.max_body_bytes:
                        raise HTTPException(
                            _TOO_LARGE,
                            f"the body has more than {self._limits.max_body_bytes} bytes, which is the limit",
                        )
        except TimeoutError:
            sentence = f"the body did not come whole within {self._limits.stall_seconds:g} s"
            raise HTTPException(_TOO_SLOW, sentence, {"connection": "close"}) from None
        except ClientDisconnect:
            raise InvalidInput("the body ended early") from None
        try:
            return kind.model_validate_json(bytes(body))
        except ValidationError as error:
            raise _complaint(error) from None


async def _within(request: Request, seconds: float | None, work: Coroutine[Any, Any, _Answer]) -> _Answer:
    """The work's outcome; ended when the caller goes away, or its own deadline passes."""
    working = asyncio.ensure_future(work)
    going = asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({working, going}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if going.done():
            raise HTTPException(499, "the caller has gone")
        raise DeadlineExceeded(f"the answer was not there within the {seconds:g} s that were asked for")
    finally:
        for task in (working, going):
            task.cancel()
        await asyncio.gather(working, going, return_exceptions=True)


def _timeout_seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MAX_TIMEOUT_SECONDS:
        raise InvalidInput(
            f"attune-timeout-seconds must be above 0 and at most {_MAX_TIMEOUT_SECONDS:g}",
            field="attune-timeout-seconds",
        )
    return seconds


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: unknown paths and methods, and bodies that are too large."""
    assert isinstance(error, HTTPException)
    shape = {"message": error.detail, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": shape}, error.status_code, error.headers)


def _complaint(error: ValidationError) -> InvalidInput:
    """The first problem, without what was sent."""
    problem = error.errors(include_url=False, include_input=False)[0]
    if problem["type"] == "json_invalid":
        return InvalidInput("the body is not JSON")
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return InvalidInput(f"{_shown(field)} is not taken", field=_shown(field))
    return InvalidInput(f"{_shown(field)}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"[:400], field=_shown(field))


def _shown(field: str) -> str:
    """A field's name as it may be repeated: a stranger chose it."""
    plain = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in field)
    return plain[:100] or "the body"


def _model(name: str, persona: Persona) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": persona.tenant,
        "persona_version": persona.version,
        "guideline_version": persona.guideline_version,
        "feedback_tags": persona.feedback_tags,
    }
