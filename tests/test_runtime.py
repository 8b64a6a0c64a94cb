import contextlib
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest

from attune.errors import Unavailable
from attune.runtime import SignalEvent, announced, clear_endpoints, read_endpoints, read_port, write_endpoints

STOPS = """
from attune import runtime
stopping = runtime.stop_on_signals(lambda: print("told", flush=True))
print("ready", flush=True)
assert stopping.wait(60)
print("stopped", flush=True)
"""

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import time
from attune.runtime import announced, die_with_parent
die_with_parent()
print("tied", flush=True)
time.sleep(600)
'''])
print(child.pid, flush=True)
child.wait()
"""


def test_endpoints_are_read_as_written_with_the_process(tmp_path: Path) -> None:
    write_endpoints(tmp_path, "inference", grpc=1, metrics=2)
    assert read_endpoints(tmp_path, "inference") == {"pid": os.getpid(), "grpc": 1, "metrics": 2}
    clear_endpoints(tmp_path, "inference")
    clear_endpoints(tmp_path, "inference")
    with pytest.raises(Unavailable, match="inference is not running on"):
        read_endpoints(tmp_path, "inference")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_service_that_fails_is_announced_no_longer(tmp_path: Path) -> None:
    with contextlib.suppress(OSError), announced(tmp_path, "shipper", metrics=2):
        assert read_port(tmp_path, "shipper", "metrics") == 2
        raise OSError("the disk is gone")
    assert not (tmp_path / "run" / "shipper.json").exists()


def test_endpoints_that_are_damaged_are_as_none(tmp_path: Path) -> None:
    write_endpoints(tmp_path, "inference", grpc=1)
    for damage in (b"", b"[]", b"\xff", b'{"grpc": "x"}', b"[" * 100_000):
        (tmp_path / "run" / "inference.json").write_bytes(damage)
        with pytest.raises(Unavailable):
            read_endpoints(tmp_path, "inference")


def test_a_port_that_was_not_written_is_said(tmp_path: Path) -> None:
    write_endpoints(tmp_path, "inference", metrics=2)
    assert read_port(tmp_path, "inference", "metrics") == 2
    with pytest.raises(Unavailable, match=r"run/inference\.json names no grpc port"):
        read_port(tmp_path, "inference", "grpc")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_event(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", STOPS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=20)[0] == "told\nstopped\n"
        assert process.returncode == 0


def set_within_wait(event: SignalEvent, step: int) -> tuple[bool, int]:
    """Sets the event after so many byte codes of `wait`, as a signal handler would; its answer, and all its steps."""
    steps = 0

    def trace(frame: FrameType, kind: str, _: object) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        if kind == "opcode":
            steps += 1
            if steps == step:
                sys.settrace(None)
                event.set()
                sys.settrace(trace)
        return trace

    sys.settrace(trace)
    try:
        return event.wait(0.01), steps
    finally:
        sys.settrace(None)


def test_an_event_can_be_set_at_any_moment_of_a_wait() -> None:
    """Where threading.Event deadlocks, for the handler runs in the thread that holds its lock."""
    step, steps = 1, 1
    while step <= steps:
        _, steps = set_within_wait(SignalEvent(), step)
        step += 1
    assert step > 10


def test_a_signal_just_before_the_kernel_waits_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    event = SignalEvent()
    wait = select.select

    def wait_late(*arguments: Any) -> Any:
        # The interpreter runs the handler only when the kernel has ended waiting, so nothing is written to the pipe.
        event._happened = True
        return wait(*arguments)

    monkeypatch.setattr(select, "select", wait_late)
    waiting = threading.Thread(target=event.wait, daemon=True)
    waiting.start()
    waiting.join(20)
    assert not waiting.is_alive()


def test_waiting_for_an_event_takes_as_long_as_said() -> None:
    event = SignalEvent()
    began = time.monotonic()
    assert not event.wait(0.05)
    assert not event.wait(-1)
    assert time.monotonic() - began >= 0.05
    event.set()
    event.set()
    assert event.is_set()
    assert event.wait()


def test_a_process_tied_to_its_parent_ends_with_it() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        said = {parent.stdout.readline(), parent.stdout.readline()}
        (child,) = [int(line) for line in said if line != "tied\n"]
        assert psutil.pid_exists(child)
        parent.kill()
        parent.wait()
        psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=20)
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def orphan(pids: multiprocessing.SimpleQueue) -> None:  # type: ignore[type-arg]
    child = multiprocessing.get_context("spawn").Process(target=tie_late, args=(os.getpid(), pids))
    child.start()
    os._exit(0)


def tie_late(parent: int, pids: multiprocessing.SimpleQueue) -> None:  # type: ignore[type-arg]
    from attune.runtime import die_with_parent

    while os.getppid() == parent:
        time.sleep(0.01)
    pids.put("orphaned")
    die_with_parent()
    pids.put("survived")


def test_a_process_of_multiprocessing_whose_parent_died_before_it_was_tied_ends_as_well() -> None:
    context = multiprocessing.get_context("spawn")
    said = context.SimpleQueue()
    parent = context.Process(target=orphan, args=(said,))
    parent.start()
    parent.join(20)
    assert said.get() == "orphaned"
    assert not said._reader.poll(1)
