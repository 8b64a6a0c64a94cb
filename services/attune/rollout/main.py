"""The rollout service: `python -m attune.rollout.main --config FILE`."""

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from attune import rpc
from attune.chat.model import model_hash
from attune.errors import AttuneError
from attune.keys import PolicyVerifier
from attune.logs import configure_logging
from attune.metrics_page import serve_metrics
from attune.personas.api_keys import KeyStore
from attune.personas.store import Personas
from attune.registry.policies import Registry
from attune.registry.rollouts import RolloutLog
from attune.rollout.promotion import Promotion
from attune.rollout.service import PolicyService
from attune.runtime import announced, die_with_parent, pause
from attune.settings import Settings, load_settings
from attune.tls import page_context, server_tls
from attune.v1 import policy_pb2, policy_pb2_grpc

logger = logging.getLogger("attune.rollout")

_POLICY_SERVICE = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
_MAX_MESSAGE_BYTES = 1 << 16
_STOP_SECONDS = 2.0


def main() -> int:
    arguments = argparse.ArgumentParser(prog="attune.rollout", description="The rollout service.")
    arguments.add_argument("--config", type=Path, help="TOML file; defaults and the environment without it.")
    die_with_parent()
    try:
        settings = load_settings(arguments.parse_args().config)
        configure_logging("rollout", settings.log_level)
        asyncio.run(serve(settings))
    except AttuneError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 - the last word of a process that cannot start
        return 1
    return 0


async def serve(settings: Settings) -> None:
    """Serves and promotes until SIGTERM or SIGINT. Calls that run then have two seconds to end."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    personas = Personas.open(settings.data, settings.personas_folder, settings.default_persona)
    base_model_hash = await asyncio.to_thread(model_hash, settings.model_folder)
    folder = settings.data / "registry"
    registry = Registry(folder, PolicyVerifier.load_or_create(settings.data / "keys"))
    log = RolloutLog(folder)

    tls = server_tls(settings.tls)
    keys = KeyStore(settings.data / "access")
    keys.open_for(settings.rollout.host)
    server = rpc.Server(keys, max_message_bytes=_MAX_MESSAGE_BYTES)
    service = PolicyService(registry, log, personas, base_model_hash=base_model_hash)
    server.add(policy_pb2_grpc.add_PolicyServiceServicer_to_server, service)
    answers = health.aio.HealthServicer()
    server.add(health_pb2_grpc.add_HealthServicer_to_server, answers)
    for name in ("", _POLICY_SERVICE):
        await answers.set(name, health_pb2.HealthCheckResponse.SERVING)
    server.add_reflection((_POLICY_SERVICE, health.SERVICE_NAME))

    grpc_port = server.bind(settings.rollout.host, settings.rollout.grpc_port, tls)
    metrics_port, metrics_server, metrics_thread = serve_metrics(
        settings.rollout.host, settings.rollout.metrics_port, page_context(tls)
    )
    await server.start()
    promotion = Promotion(
        registry,
        log,
        personas,
        base_model_hash=base_model_hash,
        datasets=settings.data / "datasets",
        withdraw_hours=settings.privacy.withdraw_hours,
    )
    try:
        with announced(settings.data, "rollout", grpc=grpc_port, metrics=metrics_port):
            logger.info("rollout is up", extra={"grpc_port": grpc_port, "metrics_port": metrics_port})
            await _promote(promotion, settings.rollout.poll_seconds, stopping)
    finally:
        await answers.enter_graceful_shutdown()
        await server.stop(_STOP_SECONDS)
        metrics_server.shutdown()
        metrics_thread.join(_STOP_SECONDS)


async def _promote(promotion: Promotion, poll_seconds: float, stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        await asyncio.to_thread(promotion.turn)
        await pause(stopping, poll_seconds)


if __name__ == "__main__":
    sys.exit(main())
