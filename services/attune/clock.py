"""The time, as everything that is stored has it."""

import time


def now_unix_ms() -> int:
    return time.time_ns() // 1_000_000
