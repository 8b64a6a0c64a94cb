"""A bar for what takes longer than two seconds, on a terminal alone."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

_PATIENCE_SECONDS = 2.0


@contextlib.contextmanager
def progress(
    what: str, total: int | None, *, patience_seconds: float = _PATIENCE_SECONDS
) -> Iterator[Callable[[int], None]]:
    """Call what it gives with how much is done; without a total the bar only says that it goes on, and since when.

    Nothing is drawn where nobody looks, or when it is quick.
    """
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    times = (TimeElapsedColumn(),) if total is None else (TaskProgressColumn(), TimeRemainingColumn())
    columns = (TextColumn(what), BarColumn(), *times)
    # What is printed meanwhile goes above the bar, but not what somebody has sent elsewhere.
    above = sys.stdout.isatty()
    bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=above)
    task = bar.add_task(what, total=total)
    late = threading.Timer(patience_seconds, bar.start)
    late.start()
    try:
        yield lambda done: bar.update(task, completed=done)
    finally:
        late.cancel()
        late.join()
        bar.stop()
