"""The aggregator as a process."""

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from attune.client.authorized import Authorized
from attune.eventlog import FEEDBACK, RESPONSES
from attune.lake.dataset import list_datasets
from attune.personas.api_keys import local_api_key
from attune.runtime import read_endpoints
from attune.v1 import dataset_pb2, dataset_pb2_grpc
from tests.aggregator.plant import Plant, ids_of
from tests.eventlog.waiting import eventually
from tests.lake.events import response_event, thumb_event
from tests.persona_files import apply


def start(folder: Path) -> "subprocess.Popen[bytes]":
    config = folder / "attune.toml"
    config.write_text(
        f"""
data = "{folder}"
[aggregator]
grpc_port = 0
metrics_port = 0
poll_seconds = 0.05
build_feedback = 10
window_days = 3650
"""
    )
    return subprocess.Popen(
        [sys.executable, "-m", "attune.aggregator.main", "--config", str(config)],
    )


def stop(process: "subprocess.Popen[bytes]") -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(30)


def datasets(folder: Path, persona: str = "concierge") -> int:
    return len(list_datasets(folder / "datasets", "default", persona))


def test_it_waits_for_the_log_ingests_builds_once_and_stops_in_order(tmp_path: Path) -> None:
    process = start(tmp_path)
    try:
        eventually((tmp_path / "run" / "aggregator.json").exists, 30)
        plant = Plant(tmp_path)
        plant.append(*[response_event(n) for n in range(12)])
        eventually(lambda: plant.log.positions("aggregator").get((RESPONSES, 0)) == 12, 30)
        plant.append(*[thumb_event(n, n) for n in range(10)])
        plant.append(b"\xff", topic=FEEDBACK)
        eventually(lambda: datasets(tmp_path) == 1, 30)
        plant.append(*[thumb_event(n, n) for n in range(10, 15)])
        eventually(lambda: plant.log.positions("aggregator")[FEEDBACK, 0] == 16, 30)
        endpoints = read_endpoints(tmp_path, "aggregator")
        port = endpoints["metrics"]
        text = metrics_page(port)
        assert 'attune_lake_lag_records{topic="attune.feedback"} 0.0' in text
        assert 'attune_dead_letters_total{topic="attune.feedback"} 1.0' in text
        eventually(lambda: 'attune_new_feedback{persona="concierge",recipe="thumbs"} 5.0' in metrics_page(port), 30)
        eventually(lambda: datasets_of(tmp_path, endpoints["grpc"], "feedback-3") == ["thumbs"], 30)
        process.kill()
        process.wait()

        process = start(tmp_path)
        plant.append(*[thumb_event(n, n) for n in range(15, 19)])
        eventually(lambda: plant.log.positions("aggregator")[FEEDBACK, 0] == 20, 30)
        assert datasets(tmp_path) == 1
        plant.append(thumb_event(19, 19))
        eventually(lambda: datasets(tmp_path) == 2, 30)

        apply(tmp_path, "guide", 'system_prompt = ""')
        plant.append(*[response_event(n, persona="guide") for n in range(600, 610)])
        plant.append(*[thumb_event(n, n, persona="guide") for n in range(600, 610)])
        eventually(lambda: datasets(tmp_path, "guide") == 1, 30)

        process.send_signal(signal.SIGSTOP)
        plant.append(*[response_event(n) for n in range(12, 500)])
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        assert process.wait(30) == 0
        assert plant.log.positions("aggregator")[RESPONSES, 0] == 510
        assert plant.ids("responses") == ids_of([response_event(n) for n in (*range(500), *range(600, 610))])
        plant.close()
        assert not (tmp_path / "run" / "aggregator.json").exists()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def datasets_of(folder: Path, port: int, feedback_id: str) -> list[str]:
    """The recipes of the datasets that a running aggregator says the feedback is in; nothing while it knows nothing."""
    request = dataset_pb2.GetReceiptsRequest(feedback_id=feedback_id)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service="attune.v1.ReceiptService")
        assert health.Check(asked, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        stub = Authorized(dataset_pb2_grpc.ReceiptServiceStub(channel), local_api_key(folder))
        try:
            (receipt,) = stub.GetReceipts(request, timeout=10).receipts
        except grpc.RpcError as failure:
            if failure.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND):
                raise
            return []
    return [use.recipe for use in receipt.datasets]


def metrics_page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        text: str = page.read().decode()
    return text


def test_it_stops_in_order_while_it_waits_for_the_log(tmp_path: Path) -> None:
    process = start(tmp_path)
    eventually((tmp_path / "run" / "aggregator.json").exists, 30)
    assert stop(process) == 0


def test_a_bad_setting_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    config = tmp_path / "attune.toml"
    config.write_text("[aggregator]\npoll_second = 1\n")
    command = [sys.executable, "-m", "attune.aggregator.main", "--config", str(config)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 1
    assert "aggregator.poll_second" in refused.stderr
    assert "Traceback" not in refused.stderr
