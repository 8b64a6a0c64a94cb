import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from attune.chat.model import model_hash
from attune.client.authorized import Authorized
from attune.errors import Unavailable
from attune.personas.api_keys import local_api_key
from attune.runtime import read_endpoints
from attune.v1 import policy_pb2, policy_pb2_grpc
from tests.rollout.house import House, Service


@pytest.fixture
def services(house: House, model: Path) -> Iterator[list[Service]]:
    started = [Service(house, model)]
    yield started
    for service in started:
        service.process.kill()
        service.process.wait()


def wait_for_entries(house: House, expected: list[str]) -> None:
    give_up = time.monotonic() + 30
    while house.entered() != expected:
        assert time.monotonic() < give_up, house.entered()
        time.sleep(0.02)


def test_the_process_promotes_survives_a_kill_and_stops_when_told(
    house: House, model: Path, services: list[Service]
) -> None:
    base = model_hash(model)
    endpoints = services[0].endpoints()
    first = house.publish(base_model_hash=base)
    wait_for_entries(house, [first])

    services[0].process.send_signal(signal.SIGKILL)
    services[0].process.wait()
    second = house.publish(base_model_hash=base)
    services.append(Service(house, model))
    endpoints = services[1].endpoints()
    wait_for_entries(house, [first, second])

    with grpc.insecure_channel(f"127.0.0.1:{endpoints['grpc']}") as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        stub = Authorized(policy_pb2_grpc.PolicyServiceStub(channel), local_api_key(house.data))
        stub.RollBack(policy_pb2.RollBackRequest(), timeout=10)
    wait_for_entries(house, [first, second, first])
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoints['metrics']}/metrics", timeout=10) as page:
        text = page.read().decode()
    assert 'attune_rollout_entries_total{author="gate",persona="concierge"} 1.0' in text
    assert 'attune_rollout_entries_total{author="operator",persona="concierge"} 1.0' in text

    services[1].process.send_signal(signal.SIGTERM)
    assert services[1].process.wait(10) == 0
    with pytest.raises(Unavailable):
        read_endpoints(house.data, "rollout")


def test_it_does_not_start_on_settings_that_cannot_be_used(tmp_path: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "attune.rollout.main"],
        env=os.environ | {"ATTUNE_DATA": str(tmp_path), "ATTUNE_ROLLOUT__POLL_SECONDS": "-1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("environment variable ATTUNE_ROLLOUT__POLL_SECONDS: ")
    assert len(outcome.stderr.splitlines()) == 1
