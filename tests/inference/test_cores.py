"""The cores that the front end keeps off."""

import json
import os
import subprocess
import sys

import pytest

# In a process of its own: the cores of the tests' process stay as they are.
PROGRAM = """
import json, os, sys, threading
from attune.inference.cores import leave_cores

waiting = threading.Event()
before = threading.Thread(target=waiting.wait)
before.start()
leave_cores(int(sys.argv[1]))
after = threading.Thread(target=waiting.wait)
after.start()
print(json.dumps([sorted(os.sched_getaffinity(thread)) for thread in (0, before.native_id, after.native_id)]))
waiting.set()
"""

CORES = sorted(os.sched_getaffinity(0))


def left_to(count: int) -> list[list[int]]:
    """The cores of the main thread, of one begun before and of one begun after `count` cores were left."""
    output = subprocess.run([sys.executable, "-c", PROGRAM, str(count)], check=True, capture_output=True).stdout
    found: list[list[int]] = json.loads(output)
    return found


@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
def test_every_thread_keeps_off_the_cores_that_are_left_to_the_engine() -> None:
    assert left_to(1) == [CORES[:-1]] * 3


@pytest.mark.parametrize("count", [0, len(CORES), len(CORES) + 1])
def test_nothing_is_left_where_no_core_would_remain_or_none_is_asked_for(count: int) -> None:
    assert left_to(count) == [CORES] * 3
