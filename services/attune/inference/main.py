"""The inference service: `python -m attune.inference.main --config FILE`."""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from attune import rpc
from attune.chat.model import model_hash
from attune.chat.template import ChatTemplate
from attune.erasures import Erasures
from attune.errors import AttuneError, Unavailable
from attune.eventlog.refused import RefusedRecords
from attune.eventlog.sqlite import SqliteLog
from attune.inference.admission import Admission
from attune.inference.capture import Hashes
from attune.inference.chat import Chat
from attune.inference.chat_rpc import ChatService
from attune.inference.cores import leave_cores
from attune.inference.engine import Dialect, Engine, EngineOptions
from attune.inference.erasing import Forgetting
from attune.inference.feedback import Feedback
from attune.inference.feedback_rpc import FeedbackService, ImportService
from attune.inference.health import HealthMonitor
from attune.inference.http.app import Limits, build_app
from attune.inference.http.server import HttpServer, bind
from attune.inference.idempotency import Idempotency
from attune.inference.imports import Imports
from attune.inference.parsing import Parsing
from attune.inference.policies import Policies
from attune.inference.quota import Quotas
from attune.inference.stall import STALL_SECONDS
from attune.inference.structured import Grammars
from attune.keys import Keys, PolicyVerifier
from attune.logs import configure_logging
from attune.metrics_page import serve_metrics
from attune.personas.api_keys import KeyStore
from attune.personas.store import Personas
from attune.registry.policies import Registry
from attune.registry.rollouts import RolloutLog
from attune.runtime import announced, die_with_parent
from attune.settings import Settings, load_settings
from attune.tls import ServerTls, page_context, server_tls
from attune.v1 import chat_pb2, chat_pb2_grpc, feedback_pb2, feedback_pb2_grpc

logger = logging.getLogger("attune.inference")

_CHAT = chat_pb2.DESCRIPTOR.services_by_name["ChatService"].full_name
_FEEDBACK = feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"].full_name

_IMPORT = feedback_pb2.DESCRIPTOR.services_by_name["ImportService"].full_name

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_GC_OBJECTS = 20_000
_WARM_UP_SECONDS = 300.0
_CLOSE_SECONDS = 2.0
_DAY_SECONDS = 86_400


def main() -> int:
    arguments = argparse.ArgumentParser(prog="attune.inference", description="The inference service.")
    arguments.add_argument("--config", type=Path, help="TOML file; defaults and the environment without it.")
    die_with_parent()
    for number in _SIGNALS:
        signal.signal(number, _end_at_once)
    try:
        settings = load_settings(arguments.parse_args().config)
        configure_logging("inference", settings.log_level)
        return uvloop.run(serve(settings))
    except AttuneError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 - the last word of a process that cannot start
        return 1


async def serve(settings: Settings, *, ignore_end: bool = False) -> int:
    """Serves until SIGTERM or SIGINT (0), or until the engine is dead (1), for the supervisor to start it again.

    With `ignore_end` answers go on to max_tokens: for measuring.
    """
    with contextlib.ExitStack() as closing:
        # What is taken (ports, the event log) is found out before the engine takes its time.
        doors = _open_doors(settings, closing)
        stores = _open_stores(settings, closing)
        chat = await _start_chat(settings, stores, closing, ignore_end=ignore_end)
        service = _assemble(settings, doors, stores, chat)
        await service.warm_up()
        leave_cores(chat.engine.cpu_threads)
        stopping = _signalled()
        await service.open()
        try:
            with announced(settings.data, "inference", **doors.ports):
                logger.info("inference is up", extra={f"{name}_port": port for name, port in doors.ports.items()})
                healthy = await service.run(stopping)
        finally:
            await service.close(settings.inference.grace_seconds if stopping.is_set() else 0)
    return 0 if healthy else 1


@dataclass(frozen=True)
class _Doors:
    """Where it listens, and who may come in."""

    access: KeyStore
    tls: ServerTls | None
    server: rpc.Server
    listening: socket.socket
    ports: Mapping[str, int]


def _open_doors(settings: Settings, closing: contextlib.ExitStack) -> _Doors:
    inference = settings.inference
    access, tls = KeyStore(settings.data / "access"), server_tls(settings.tls)
    access.open_for(inference.host)
    server = rpc.Server(access, max_message_bytes=inference.max_message_bytes)
    grpc_port = server.bind(inference.host, inference.grpc_port, tls)
    listening = bind(inference.host, inference.http_port)
    metrics_port, page, thread = serve_metrics(inference.host, inference.metrics_port, page_context(tls))
    closing.callback(thread.join, _CLOSE_SECONDS)
    closing.callback(page.shutdown)
    ports = {"grpc": grpc_port, "http": listening.getsockname()[1], "metrics": metrics_port}
    return _Doors(access, tls, server, listening, ports)


@dataclass(frozen=True)
class _Stores:
    """What it keeps in the data folder."""

    personas: Personas
    keys: Keys
    log: SqliteLog
    idempotency: Idempotency


def _open_stores(settings: Settings, closing: contextlib.ExitStack) -> _Stores:
    personas = Personas.open(settings.data, settings.personas_folder, settings.default_persona)
    log = SqliteLog(
        settings.data / "spool",
        max_bytes=settings.event_log.max_mib << 20,
        readers=settings.spool_readers,
        feedback_share=settings.event_log.feedback_share,
        max_record_bytes=settings.kafka.max_record_mib << 20 if settings.kafka.servers else None,
    )
    closing.callback(log.close)
    idempotency = Idempotency(
        settings.data / "idempotency.sqlite",
        keep_hours=settings.inference.idempotency_hours,
        most_answers=settings.inference.idempotency_answers,
    )
    closing.callback(idempotency.close)
    return _Stores(personas, Keys.load_or_create(settings.data / "keys"), log, idempotency)


async def _start_chat(settings: Settings, stores: _Stores, closing: contextlib.ExitStack, *, ignore_end: bool) -> Chat:
    """Loads the model; generates nothing yet."""
    template = await asyncio.to_thread(ChatTemplate.load, settings.model_folder)
    base_model_hash = await asyncio.to_thread(model_hash, settings.model_folder)
    dialect = await asyncio.to_thread(
        Dialect, settings.model_folder, settings.engine.tool_parser, settings.engine.reasoning_parser
    )
    engine = await Engine.start(replace(_engine_options(settings), ignore_end=ignore_end))
    closing.callback(engine.stop)
    grammars = Grammars(settings.model_folder)
    closing.callback(grammars.close)
    policies = Policies(
        engine,
        Registry(settings.data / "registry", PolicyVerifier.load_or_create(settings.data / "keys")),
        RolloutLog(settings.data / "registry"),
        stores.personas,
        base_model_hash=base_model_hash,
        adapters=settings.data / "adapters",
    )
    return Chat(
        engine=engine,
        template=template,
        policies=policies,
        log=stores.log,
        keys=stores.keys,
        personas=stores.personas,
        hashes=Hashes(base_model_hash, template.tokenizer_hash, template.hash),
        admission=Admission(settings.inference.max_concurrent_requests, settings.inference.max_concurrent_tokens),
        quotas=Quotas(),
        idempotency=stores.idempotency,
        parsing=Parsing(dialect),
        grammars=grammars,
        tenants=settings.tenants,
        feedback_token_seconds=settings.inference.feedback_token_days * _DAY_SECONDS,
    )


def _assemble(settings: Settings, doors: _Doors, stores: _Stores, chat: Chat) -> "InferenceServer":
    feedback = Feedback(stores.log, stores.keys, stores.personas, stores.idempotency)
    app = build_app(
        chat,
        feedback,
        stores.personas,
        doors.access,
        limits=Limits(settings.inference.max_message_bytes, STALL_SECONDS),
        cors_origins=settings.inference.cors_origins,
    )
    erasures, refused = Erasures(settings.data / "erasures"), RefusedRecords(settings.data / "spool")
    return InferenceServer(
        doors.server,
        HttpServer(app, doors.listening, None if doors.tls is None else doors.tls.ssl_context()),
        chat=chat,
        feedback=feedback,
        imports=Imports(stores.log, stores.keys, stores.personas, stores.idempotency, settings.tenants),
        forgetting=Forgetting(erasures, stores.log, stores.idempotency, refused),
    )


class InferenceServer:
    """Chat, feedback, health and reflection on one gRPC server, and the tasks behind them."""

    def __init__(
        self,
        server: rpc.Server,
        http: HttpServer,
        *,
        chat: Chat,
        feedback: Feedback,
        imports: Imports,
        forgetting: Forgetting | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._server = server
        self._http = http
        self._chat = chat
        self._forgetting = forgetting
        self._answers = health.aio.HealthServicer()
        server.add(chat_pb2_grpc.add_ChatServiceServicer_to_server, ChatService(chat, stall_seconds))
        server.add(feedback_pb2_grpc.add_FeedbackServiceServicer_to_server, FeedbackService(feedback))
        server.add(feedback_pb2_grpc.add_ImportServiceServicer_to_server, ImportService(imports))
        server.add(health_pb2_grpc.add_HealthServicer_to_server, self._answers)
        server.add_reflection((_CHAT, _FEEDBACK, _IMPORT, health.SERVICE_NAME))

    async def warm_up(self) -> None:
        """Generates, for the first time compiles; then what the rollout log says is put in service."""
        begun = time.monotonic()
        await self._chat.engine.warm_up(_WARM_UP_SECONDS)
        self._chat.policies.clear()
        await self._chat.policies.refresh()
        # What the libraries hold stays for good: looking through it took hundreds of milliseconds each time.
        gc.collect()
        gc.freeze()
        # Every token makes some objects, and hardly any of them are rings.
        gc.set_threshold(_GC_OBJECTS)
        logger.info("engine is warm", extra={"seconds": round(time.monotonic() - begun, 2)})

    async def open(self) -> None:
        await self._say(True)
        await self._server.start()
        self._http.start()

    async def run(self, stopping: asyncio.Event) -> bool:
        """Follows rollouts and health until told to stop (True) or until the engine is dead (False).

        From then on new calls are refused and health says NOT_SERVING.
        """
        ending = asyncio.Event()
        following = asyncio.create_task(self._chat.policies.run(ending))
        watching = asyncio.create_task(HealthMonitor(self._chat.engine, say=self._say).run(ending))
        told = asyncio.create_task(stopping.wait())
        forgetting = asyncio.create_task(self._forget(ending))
        try:
            await asyncio.wait({following, watching, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._chat.admission.shut("stopping", Unavailable("the server is stopping", retry_after_seconds=5))
            await self._answers.enter_graceful_shutdown()
            ending.set()
            for task in (told, following):
                task.cancel()
            await asyncio.wait({following, watching, told, forgetting})
        if following.done() and not following.cancelled():
            following.result()
        return not watching.result()

    async def _forget(self, ending: asyncio.Event) -> None:
        if self._forgetting is not None:
            await self._forgetting.run(ending)

    async def close(self, grace_seconds: float) -> None:
        """Lets running calls finish in time, cuts the others short, logs them all."""
        if not await self._chat.admission.wait_idle(grace_seconds):
            await self._chat.abort_all()
            await self._chat.admission.wait_idle(_CLOSE_SECONDS)
        await asyncio.gather(self._server.stop(_CLOSE_SECONDS), self._http.stop())
        await self._chat.settle()
        self._chat.policies.clear()

    async def _say(self, serving: bool) -> None:
        if serving:
            self._chat.admission.open("engine")
        else:
            self._chat.admission.shut("engine", Unavailable("the engine does not answer", retry_after_seconds=5))
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", _CHAT, _FEEDBACK, _IMPORT):
            await self._answers.set(name, state)


def _signalled() -> asyncio.Event:
    """Set by SIGTERM or SIGINT."""
    signalled = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    return signalled


def _end_at_once(_number: int, _frame: object) -> None:
    """Until all has started: vLLM holds the event loop for as long as that takes, and nothing is promised yet."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(0)


def _engine_options(settings: Settings) -> EngineOptions:
    engine = settings.engine
    return EngineOptions(
        model=settings.model_folder,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        max_queued=settings.inference.max_concurrent_requests,
        max_loras=engine.max_loras,
        max_lora_rank=engine.max_lora_rank,
        kv_cache_gib=engine.kv_cache_gib,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        omp_threads=engine.omp_threads,
        enforce_eager=engine.enforce_eager,
        dtype=engine.dtype,
    )


if __name__ == "__mp_main__":
    # What multiprocessing spawns imports this file before anything else: no process of the engine outlives this one.
    die_with_parent()

if __name__ == "__main__":
    sys.exit(main())
