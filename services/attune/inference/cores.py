"""The cores that this process runs on."""

import contextlib
import os
from pathlib import Path


def leave_cores(count: int) -> None:
    """Keeps this process off the last `count` of its cores, or does nothing where it would have none left.

    An engine on CPU is busy on as many cores as it has threads, and waits at each step for the slowest; the front end's
    threads delayed it whenever they were put in between. Children that are there already stay as they are.
    """
    cores = sorted(os.sched_getaffinity(0))
    if not 0 < count < len(cores):
        return
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread.name), cores[:-count])
