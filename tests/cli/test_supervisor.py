import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from attune.cli.preflight import SERVICES
from attune.cli.supervisor import Exited, Service, Supervisor, backoff_seconds
from attune.runtime import read_endpoints
from tests.cli.tiny_ring import journal, order, processes, screen, start_ring, until
from tests.disks import small_disk

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts rings of tiny services on tmp_path; what still runs at the end is killed, and must be gone."""
    rings: list[subprocess.Popen[str]] = []

    def start_one(**overrides: object) -> subprocess.Popen[str]:
        rings.append(start_ring(tmp_path, **overrides))
        return rings[-1]

    yield start_one
    for ring in rings:
        ring.kill()
        ring.wait()
    until(lambda: not processes(tmp_path))


@pytest.fixture
def ring(start: Start, tmp_path: Path) -> subprocess.Popen[str]:
    """A ring of four tiny services, ready."""
    supervisor = start()
    until(lambda: "attune is up" in screen(tmp_path))
    return supervisor


def started(data: Path, service: str) -> list[tuple[int, int]]:
    """Process and child of every start of a service."""
    lines = [line.split() for line in journal(data)]
    return [(int(line[2]), int(line[3])) for line in lines if line[:2] == [service, "started"]]


def test_the_start_screen_says_where_everything_listens(ring: subprocess.Popen[str], tmp_path: Path) -> None:
    text = screen(tmp_path)
    for service in SERVICES:
        assert f"metrics of {service}: http://127.0.0.1:{read_endpoints(tmp_path, service)['metrics']}/metrics" in text
    assert "the same for OpenAI clients: http://127.0.0.1:2/v1" in text
    assert "API key: " in text
    assert "ak-" not in text
    assert "personas: concierge (default), tutor" in text
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in text
    assert f"logs: {tmp_path}/logs" in text
    assert f"attune chat --data {tmp_path}" in text


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_killed_with_9_comes_back_and_leaves_no_child_behind(
    ring: subprocess.Popen[str], tmp_path: Path, service: str
) -> None:
    ((process, child),) = started(tmp_path, service)
    os.kill(process, signal.SIGKILL)
    until(lambda: len(started(tmp_path, service)) == 2)
    until(lambda: read_endpoints(tmp_path, service)["pid"] == started(tmp_path, service)[1][0])
    until(lambda: not psutil.pid_exists(child))
    until(lambda: f"{service} was killed by SIGKILL" in screen(tmp_path))
    until(lambda: f"{service} is ready" in screen(tmp_path))
    assert all(len(started(tmp_path, other)) == 1 for other in SERVICES if other != service)


def test_nothing_survives_a_supervisor_killed_with_9(ring: subprocess.Popen[str], tmp_path: Path) -> None:
    assert len(processes(tmp_path)) >= 2 * len(SERVICES)
    ring.kill()
    ring.wait()
    until(lambda: not processes(tmp_path), seconds=5)


def test_a_start_right_after_a_kill_of_the_supervisor_waits_for_what_is_left_and_succeeds(
    ring: subprocess.Popen[str], start: Start, tmp_path: Path
) -> None:
    ring.kill()
    again = start()
    until(lambda: "attune is up" in screen(tmp_path))
    again.send_signal(signal.SIGTERM)
    assert again.wait(30) == 0


def test_a_second_start_on_the_same_data_is_refused_in_a_sentence(
    ring: subprocess.Popen[str], start: Start, tmp_path: Path
) -> None:
    before = journal(tmp_path)
    second = start()
    _, complaint = second.communicate(timeout=30)
    assert second.returncode == 1
    assert f"{tmp_path} is in use by another `attune up` (process {ring.pid})" in complaint
    assert "Traceback" not in complaint
    assert journal(tmp_path) == before
    assert ring.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_drains_in_order_and_exits_with_0(
    ring: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    ring.send_signal(number)
    assert ring.wait(30) == 0
    assert journal(tmp_path)[-4:] == [f"{service} stopped" for service in SERVICES]
    assert not processes(tmp_path)
    assert not list((tmp_path / "run").glob("*.json"))


def test_a_signal_during_the_start_stops_what_has_started(start: Start, tmp_path: Path) -> None:
    order(tmp_path, "trainer", "serving 0")
    supervisor = start(trainer__poll_seconds=1)
    until(lambda: "✓ inference" in screen(tmp_path))
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(30) == 0
    assert not processes(tmp_path)


def test_a_service_that_does_not_stop_in_time_is_killed_and_the_exit_says_so(start: Start, tmp_path: Path) -> None:
    order(tmp_path, "aggregator", "stubborn")
    supervisor = start(supervisor__stop_seconds=0.5)
    until(lambda: "attune is up" in screen(tmp_path))
    supervisor.terminate()
    assert supervisor.wait(30) == 1
    assert "aggregator was killed by SIGKILL" in screen(tmp_path)
    assert [line for line in journal(tmp_path) if line.endswith("stopped")] == [
        f"{service} stopped" for service in SERVICES if service != "aggregator"
    ]
    assert not processes(tmp_path)


def test_a_second_interrupt_ends_everything_at_once(start: Start, tmp_path: Path) -> None:
    order(tmp_path, "inference", "stubborn")
    supervisor = start(supervisor__stop_seconds=600)
    until(lambda: "attune is up" in screen(tmp_path))
    supervisor.send_signal(signal.SIGINT)
    until(lambda: "stopping" in screen(tmp_path))
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(30) == 1
    assert not processes(tmp_path)


@pytest.mark.parametrize("how", ["frozen", "not serving"])
def test_a_service_that_is_not_well_is_killed_and_started_anew(start: Start, tmp_path: Path, how: str) -> None:
    supervisor = start(supervisor__silent_seconds=2)
    until(lambda: "attune is up" in screen(tmp_path))
    ((process, _),) = started(tmp_path, "inference")
    if how == "frozen":
        os.kill(process, signal.SIGSTOP)
    else:
        order(tmp_path, "inference", "serving 0")
        until(lambda: "inference was not well for 2 s" in screen(tmp_path))
        order(tmp_path, "inference", "serving 1")
    until(lambda: len(started(tmp_path, "inference")) == 2)
    until(lambda: "inference is ready" in screen(tmp_path))
    supervisor.terminate()
    assert supervisor.wait(30) == 0


def test_a_change_of_policy_is_shown(ring: subprocess.Popen[str], tmp_path: Path) -> None:
    order(tmp_path, "inference", "policy 7")
    until(lambda: "concierge: now answering: p-000007 (was base)" in screen(tmp_path))


def test_a_service_that_cannot_start_ends_the_start_with_its_last_words(start: Start, tmp_path: Path) -> None:
    order(tmp_path, "rollout", "fail")
    supervisor = start()
    _, complaint = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 1
    assert "rollout does not start: it exited with 3 3 times" in complaint.replace("\n", " ")
    assert "rollout cannot find its model" in complaint
    assert "Traceback" not in complaint
    assert not processes(tmp_path)


def test_a_trainer_that_cannot_start_is_said_and_the_ring_is_up_without_it(start: Start, tmp_path: Path) -> None:
    order(tmp_path, "trainer", "fail")
    supervisor = start()
    until(lambda: "attune is up" in screen(tmp_path))
    shown = screen(tmp_path)
    assert "trainer cannot find its model" in shown
    assert "the others go on without the trainer" in shown
    assert "metrics of rollout" in shown
    assert "metrics of trainer" not in shown
    order(tmp_path, "trainer", "")
    until(lambda: "trainer is ready" in screen(tmp_path))
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(30) == 0


def test_a_port_that_is_taken_is_a_sentence_before_anything_starts(start: Start, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        supervisor = start(inference__grpc_port=port)
        _, complaint = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port} (inference.grpc_port): address already in use" in complaint
    assert journal(tmp_path) == []


def test_one_port_for_two_things_is_a_sentence(start: Start, tmp_path: Path) -> None:
    supervisor = start(trainer__metrics_port=9199, rollout__metrics_port=9199)
    _, complaint = supervisor.communicate(timeout=30)
    assert complaint == "trainer.metrics_port and rollout.metrics_port are both 9199; change one\n"


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"default_persona": "nobody"}, "default_persona is nobody"),
        ({"model": "/nowhere"}, "/nowhere has no config.json"),
        ({"personas": "/nowhere"}, "no persona here"),
        ({"inference__host": "no.such.host.invalid"}, "no address of this machine"),
    ],
)
def test_settings_that_cannot_work_are_a_sentence_before_anything_starts(
    start: Start, tmp_path: Path, overrides: dict[str, object], complaint: str
) -> None:
    supervisor = start(**{"inference__grpc_port": 59999, **overrides})
    _, said = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 1
    assert complaint in said
    assert "Traceback" not in said
    assert journal(tmp_path) == []


def test_a_full_disk_is_said_with_the_folder(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16k") as disk:
        with pytest.raises(OSError, match="No space left"):
            (disk / "filler").write_bytes(bytes(1 << 20))
        said = subprocess.run(
            [sys.executable, "-P", "-m", "attune.cli.main", "up", "--data", str(disk / "data")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (said.returncode, said.stderr) == (1, f"attune: {disk / 'data'}: no space left on device\n")


def test_backoff_doubles_up_to_its_most() -> None:
    assert [backoff_seconds(failures, 0.5, 30) for failures in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff_seconds(10_000, 0.5, 30) == 30


def exits(supervisor: Supervisor, wanted: int) -> list[Exited]:
    seen: list[Exited] = []

    def enough() -> bool:
        seen.extend(event for event in supervisor.tick() if isinstance(event, Exited))
        return len(seen) >= wanted

    until(enough)
    return seen


@pytest.mark.parametrize(("stable_seconds", "failures"), [(60, [1, 2, 3, 4]), (0, [1, 1, 1, 1])])
def test_failures_in_a_row_are_counted_until_a_stable_run(
    tmp_path: Path, stable_seconds: float, failures: list[int]
) -> None:
    service = Service("crash", (sys.executable, "-S", "-c", "raise SystemExit(7)"))
    supervisor = Supervisor(
        [service],
        log_folder=tmp_path,
        environment=os.environ,
        first_backoff_seconds=0.01,
        stable_seconds=stable_seconds,
    )
    with supervisor:
        seen = exits(supervisor, 4)
    assert [event.failures for event in seen] == failures
    assert {event.how for event in seen} == {"exited with 7"}


def test_a_program_that_is_not_there_is_tried_again(tmp_path: Path) -> None:
    script = tmp_path / "service"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    supervisor = Supervisor(
        [Service("gone", (str(script),))], log_folder=tmp_path, environment=os.environ, first_backoff_seconds=0.01
    )
    with supervisor:
        script.unlink()
        assert "could not be started" in exits(supervisor, 2)[1].how


def test_logs_are_bounded(tmp_path: Path) -> None:
    service = Service("talk", (sys.executable, "-S", "-c", "while True: print('x' * 99, flush=True)"))
    supervisor = Supervisor(
        [service],
        log_folder=tmp_path,
        environment=os.environ,
        first_backoff_seconds=1,
        max_log_bytes=10_000,
    )
    old = tmp_path / "talk.log.1"

    def turned() -> bool:
        supervisor.tick()
        return old.exists() and supervisor.log("talk").stat().st_size > 0

    with supervisor:
        until(turned)
        first = old.stat().st_mtime_ns
        until(lambda: turned() and old.stat().st_mtime_ns > first)
    assert b"\0" not in supervisor.log("talk").read_bytes()
