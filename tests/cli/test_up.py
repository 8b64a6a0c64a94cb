"""`attune up` on the real services; what supervising means is in test_supervisor.py, on small ones."""

import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from attune.cli.preflight import IN_ORDER, SERVICES
from attune.errors import FailedPrecondition
from attune.eventlog.broker import fetch_jars, free_port
from attune.lake.audit import count_ids
from attune.runtime import read_endpoints
from tests.certificates import Authority
from tests.cli.tiny_ring import screen, until

START_SECONDS = 240.0


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """Of a ring with mutual TLS, under another name than the one that it is reached by."""
    authority = Authority(tmp_path / "certificates")
    server, client = authority.issue("server", ["attune.example.org"]), authority.issue("client", ())
    return {
        "ATTUNE_TLS__CERTIFICATE": str(server.certificate),
        "ATTUNE_TLS__KEY": str(server.key),
        "ATTUNE_TLS__CLIENT_CA": str(authority.certificate),
        "ATTUNE_CLIENT__CERTIFICATE": str(client.certificate),
        "ATTUNE_CLIENT__KEY": str(client.key),
    }


def attune_up(data: Path, settings: dict[str, str], *options: str) -> subprocess.Popen[bytes]:
    data.mkdir(exist_ok=True)
    ports = [f"{name}__metrics_port" for name in IN_ORDER] + [
        "inference__grpc_port",
        "inference__http_port",
        "aggregator__grpc_port",
        "rollout__grpc_port",
    ]
    with open(data / "screen", "w") as file:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "attune.cli.main", "up", "--data", str(data), *options],
            env={
                **os.environ,
                **{f"ATTUNE_{port.upper()}": "0" for port in ports},
                "ATTUNE_BROKER__PORT": str(free_port()),
                "ATTUNE_ENGINE__OMP_THREADS": "1",
                **settings,
            },
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def attune(data: Path, settings: dict[str, str], *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "attune.cli.main", *arguments, "--data", str(data)],
        env={**os.environ, **settings},
        input=said,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def family(ring: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(ring.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.timeout(600)
def test_a_ring_is_talked_to_dies_with_its_supervisor_comes_back_and_stops_in_order(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    ring = attune_up(tmp_path, settings)
    until(lambda: "attune is up" in screen(tmp_path) or ring.poll() is not None, START_SECONDS)
    talk = attune(tmp_path, settings, "chat", said="What is the capital of France?\n/up\n")
    assert (talk.returncode, talk.stderr) == (0, "")
    assert "noted: thumb up" in talk.stdout
    assert "base" in attune(tmp_path, settings, "policy", "list").stdout
    http = f"https://127.0.0.1:{read_endpoints(tmp_path, 'inference')['http']}"
    assert f"{http}/v1" in screen(tmp_path)
    trusting = ssl.create_default_context(cafile=settings["ATTUNE_TLS__CLIENT_CA"])
    trusting.check_hostname = False
    trusting.load_cert_chain(settings["ATTUNE_CLIENT__CERTIFICATE"], settings["ATTUNE_CLIENT__KEY"])
    assert httpx.get(f"{http}/healthz", verify=trusting, timeout=30).status_code == 200
    stranger = {name: value for name, value in settings.items() if "CLIENT__" not in name}
    refused = attune(tmp_path, stranger, "chat", said="Hello\n")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.endswith("it hangs up; it may want TLS, or a client's certificate\n")

    processes = family(ring)
    assert any("EngineCore" in process.name() for process in processes)
    ring.kill()
    ring.wait()
    until(lambda: not alive(processes), 15)

    # What was said before Kafka came, and what is said now, goes the longer way.
    with_kafka = ("--with-kafka",) if kafka_can_be_run() else ()
    ring = attune_up(tmp_path, settings, *with_kafka)
    until(lambda: "attune is up" in screen(tmp_path) or ring.poll() is not None, START_SECONDS)
    assert "noted: thumb down" in attune(tmp_path, settings, "chat", said="What is 3 plus 4?\n/down\n").stdout
    processes = family(ring)
    ring.send_signal(signal.SIGTERM)
    assert ring.wait(90) == 0
    stopped = [line.split()[1] for line in screen(tmp_path).splitlines() if " stopped in " in line]
    assert stopped == list(IN_ORDER if with_kafka else SERVICES)
    assert not alive(processes)
    assert sorted(count_ids(tmp_path / "lake", "responses", "event_id").values()) == [1, 1]
    assert sorted(count_ids(tmp_path / "lake", "feedback", "event_id").values()) == [1, 1]
    if with_kafka:
        without = attune(tmp_path, settings, "up")
        assert without.returncode == 1
        assert f"the records of {tmp_path / 'spool'} went on to Kafka" in without.stderr


def kafka_can_be_run() -> bool:
    """In CI it must be."""
    try:
        fetch_jars()
    except FailedPrecondition:
        if os.environ.get("CI"):
            raise
        return False
    return True
