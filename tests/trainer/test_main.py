"""The trainer as a process."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.persona_files import apply
from tests.trainer.tiny import dataset_of, thumbs

from attune.chat.model import model_hash
from attune.errors import Unavailable
from attune.keys import PolicyVerifier
from attune.registry.policies import Registry
from attune.runtime import read_endpoints
from attune.trainer.outcomes import Outcomes

_DEADLINE_SECONDS = 120


def wait_for(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not true():
        assert process.poll() is None, f"the trainer ended with {process.returncode}"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def metric(data: Path, name: str) -> float:
    try:
        port = read_endpoints(data, "trainer")["metrics"]
    except Unavailable:
        return -1
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), -1)


@pytest.fixture
def data(tiny_model: Path, tmp_path: Path) -> Path:
    (tmp_path / "personas").mkdir()
    (tmp_path / "personas" / "concierge.toml").write_text('system_prompt = "brief"\n')
    data = tmp_path / "data"
    (tmp_path / "attune.toml").write_text(
        f"""
        data = "{data}"
        model = "{tiny_model}"
        personas = "{tmp_path / "personas"}"
        [trainer]
        metrics_port = 0
        poll_seconds = 0.1
        nice = 0
        threads = 1
        [trainer.kto]
        learning_rate = 3e-3
        epochs = 100
        batch_size = 16
        """
    )
    dataset_of(data / "datasets", thumbs(160), model_hash(tiny_model))
    return data


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(**environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "attune.trainer.main", "--config", str(tmp_path / "attune.toml")]
        with (tmp_path / "log").open("ab") as log:
            started.append(subprocess.Popen(command, stderr=log, env={**os.environ, **environment}))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_sigterm_in_the_middle_of_training_and_on_again(
    data: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = start()
    wait_for(lambda: metric(data, "attune_training_step") >= 2, process)
    assert metric(data, 'attune_training_state{state="training"}') == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0
    registry = Registry(data / "registry", PolicyVerifier.load_or_create(data / "keys"))
    outcomes = Outcomes(data / "trainer" / "cycles")
    assert registry.ids() == ()
    assert outcomes.dataset_ids() == frozenset()

    process = start(ATTUNE_TRAINER__KTO__EPOCHS="1")
    wait_for(lambda: bool(outcomes.dataset_ids()), process)
    wait_for(lambda: metric(data, 'attune_training_state{state="idle"}') == 1, process)
    # A persona that is applied while the trainer runs has its cycles too.
    apply(data, "guide", 'system_prompt = ""')
    base_model_hash = registry.read(registry.ids()[0]).base_model_hash
    dataset_of(data / "datasets", thumbs(8), base_model_hash, persona="guide")
    wait_for(lambda: len(outcomes.dataset_ids()) == 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0
    assert len(registry.ids()) == 1
    assert registry.read_verdict(registry.ids()[0]).checks
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    assert [line["message"] for line in lines if line["message"].startswith("cycle")] == [
        "cycle begins",
        "cycle stopped",
        "cycle begins",
        "cycle ended",
        "cycle begins",
        "cycle ended",
    ]
