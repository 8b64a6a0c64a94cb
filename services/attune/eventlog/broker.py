"""A real Kafka broker for one machine, without Docker: Java runs it, Maven brings its jars, once.

It keeps one copy of everything and lets everybody in: for trying out, and for tests. `python -m attune.eventlog.broker`
is the service that `attune up --with-kafka` runs.
"""

import argparse
import base64
import contextlib
import logging
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from attune import maven
from attune.errors import AttuneError, FailedPrecondition, Unavailable
from attune.eventlog.cluster import Cluster
from attune.eventlog.topics import TopicRules, create_topics
from attune.logs import configure_logging
from attune.metrics_page import serve_metrics
from attune.runtime import announced, die_with_parent, stop_on_signals
from attune.settings import load_settings
from attune.tls import page_context, server_tls

logger = logging.getLogger("attune.broker")

KAFKA = "4.1.0"
_HEAP = "-Xmx512m"
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_LOOK_SECONDS = 0.1
_JARS = f"kafka-{KAFKA}"
_ARTIFACTS = (f"org.apache.kafka:kafka_2.13:{KAFKA}", "org.slf4j:slf4j-simple:1.7.36")
# Java ends with its starter: the kernel keeps the wish over exec.
_TIED = (
    "import os, sys; from attune.runtime import die_with_parent; "
    "die_with_parent(); os.execvp(sys.argv[1], sys.argv[1:])"
)


def cached_jars() -> Path:
    """Where the jars are, or will be."""
    return maven.cached_jars(_JARS)


def fetch_jars() -> Path:
    """The folder of the broker's jars, brought by Maven the first time (45 MB). Raises FailedPrecondition."""
    return maven.fetch_jars(_JARS, _ARTIFACTS, "a broker of our own", "name a broker that runs with --kafka HOST:PORT")


class LocalBroker:
    """One broker that is its own controller, with its data in a folder. Start it from the main thread."""

    def __init__(self, folder: Path, port: int, *, host: str = "127.0.0.1", properties: Mapping[str, str] = {}) -> None:
        """`properties` are added to the broker's own, or replace them."""
        self.address = f"{host}:{port}"
        self._folder = folder
        self._properties = {**_properties(folder, host, port, free_port()), **properties}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise FailedPrecondition("the broker does not run")
        return self._process.pid

    def start(self, jars: Path) -> None:
        """Returns when it answers. Raises Unavailable when it does not, with the end of what it said."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / "server.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in self._properties.items()))
        java = ["java", _HEAP, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{jars}/*"]
        with open(self._folder / "broker.log", "ab") as log:
            if not (self._folder / "data" / "meta.properties").exists():
                cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[:22].replace("-", "a")
                shutil.rmtree(self._folder / "data", ignore_errors=True)
                subprocess.run(
                    [*java, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(file)],
                    stdout=log,
                    stderr=log,
                    timeout=_START_SECONDS,
                    check=False,
                )
            self._process = subprocess.Popen(
                [sys.executable, "-c", _TIED, *java, "kafka.Kafka", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        host, _, port = self.address.rpartition(":")
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(host, int(port)):
            if self.has_ended() or time.monotonic() > deadline:
                self.kill()
                raise Unavailable(f"the broker does not start: {self._last_words()}")
            time.sleep(_LOOK_SECONDS)

    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def stop(self) -> bool:
        """In order; False when it had to be killed."""
        if self._process is None:
            return True
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
            return True
        self.kill()
        return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        said = (self._folder / "broker.log").read_text(errors="replace").strip().splitlines()
        return f"{' '.join(said[-1:])[:300]}; see {self._folder / 'broker.log'}"


def free_port() -> int:
    """Below the ports that systems give to connections: one of those may be taken before the broker listens."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            return port


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _properties(folder: Path, host: str, port: int, controller_port: int) -> dict[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://{host}:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{host}:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(folder / "data"),
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # Otherwise the first consumer waits 3 s for others.
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        # One that was killed is taken for alive, and its successor refused, for so long.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "500",
        "auto.create.topics.enable": "false",
        # A machine that loses its power has nobody to copy from.
        "log.flush.interval.messages": "1",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="a Kafka broker for one machine")
    parser.add_argument("--config", type=Path, help="settings, TOML")
    arguments = parser.parse_args()
    die_with_parent()
    try:
        settings = load_settings(arguments.config)
        configure_logging("broker", settings.log_level)
        rules, kafka = settings.broker, settings.kafka
        stopping = stop_on_signals()
        broker = LocalBroker(settings.data / "kafka", rules.port, host=rules.host)
        broker.start(fetch_jars())
        made = create_topics(Cluster.of(kafka), TopicRules.of(kafka))
        metrics_port, page, _ = serve_metrics(rules.host, rules.metrics_port, page_context(server_tls(settings.tls)))
        with announced(settings.data, "broker", kafka=rules.port, metrics=metrics_port):
            logger.info("broker started", extra={"port": rules.port, "metrics_port": metrics_port, "topics_made": made})
            in_order = _keep(broker, stopping)
        page.shutdown()
    except AttuneError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    logger.info("broker stopped")
    return 0 if in_order else 1


def _keep(broker: LocalBroker, stopping: threading.Event) -> bool:
    while not stopping.wait(_LOOK_SECONDS):
        if broker.has_ended():
            logger.error("the broker ended")
            return False
    return broker.stop()


if __name__ == "__main__":
    sys.exit(main())
