"""A bar for what takes longer than two seconds, on a terminal alone."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_PATIENCE_SECONDS = 2.0


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Call what it gives with how much is done. Nothing is drawn where nobody looks, or when it is quick."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=total)
    began = time.monotonic()

    def update(done: int) -> None:
        if not bar.live.is_started and time.monotonic() - began > _PATIENCE_SECONDS:
            bar.start()
        bar.update(task, completed=done)

    try:
        yield update
    finally:
        bar.stop()
