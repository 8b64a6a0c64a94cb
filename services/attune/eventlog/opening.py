"""Opening what another process has yet to make."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from attune.errors import NotFound, Unavailable

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2

Opened = TypeVar("Opened")


def open_when_there(opening: Callable[[], Opened], stopping: threading.Event) -> Opened | None:
    """Tries until it opens; none when told to stop before. What is not there yet is said once."""
    said = ""
    while not stopping.is_set():
        try:
            return opening()
        except (NotFound, Unavailable) as error:
            what = error.message.partition(":")[0]  # the details change while a broker comes back
            if what != said:
                said = what
                logger.info("waiting", extra={"reason": error.message})
            stopping.wait(_LOOK_SECONDS)
    return None
