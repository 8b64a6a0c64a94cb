"""Whether the engine generates: told by its steps, and by a small probe when there are none."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from attune import metrics
from attune.errors import AttuneError
from attune.inference.engine import Engine
from attune.runtime import pause

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.25
# Silence after which a probe is sent, after which the engine counts as not serving, and after which it is given up.
_PROBE_AFTER_SECONDS = 1.0
_SILENT_SECONDS = 3.5
_SWAP_SECONDS = 60.0
_GIVE_UP_SECONDS = 30.0
_PROBE_DEADLINE_SECONDS = 2.0


class HealthMonitor:
    """Watches an engine from its warm-up on.

    Every step of the engine counts as life, so that load (also long prompts, which give no tokens for a while) never
    looks like a failure. Without steps a one-token probe is sent, past admission and logged nowhere; an engine that
    does not answer it is not serving 3.5 s after its last step. While an adapter is loaded or removed, which keeps the
    engine busy, only a stopped or vanished process counts. Time in which this process itself did not run does not.
    """

    def __init__(self, engine: Engine, *, say: Callable[[bool], Awaitable[None]]) -> None:
        self._engine = engine
        self._say = say
        self._serving: bool | None = None
        self._probe: asyncio.Task[None] | None = None

    async def run(self, stopping: asyncio.Event) -> bool:
        """Says what changes until told to stop (False) or until the engine is dead or given up (True)."""
        silent_seconds = stopped_seconds = 0.0
        seen_move = self._engine.last_move_seconds
        looked = time.monotonic()
        try:
            await self._tell(True)
            while not stopping.is_set():
                await pause(stopping, _TICK_SECONDS)
                now = time.monotonic()
                ran_seconds, looked = min(now - looked, 2 * _TICK_SECONDS), now
                if self._engine.dead:
                    await self._tell(False)
                    return True
                stopped_seconds = stopped_seconds + ran_seconds if self._engine.stopped() else 0.0
                if self._engine.last_move_seconds > seen_move:
                    seen_move, silent_seconds = self._engine.last_move_seconds, 0.0
                else:
                    silent_seconds += ran_seconds
                    if silent_seconds >= _PROBE_AFTER_SECONDS:
                        self._send_probe()
                limit_seconds = _SWAP_SECONDS if self._engine.swaps_running else _SILENT_SECONDS
                await self._tell(silent_seconds < limit_seconds and stopped_seconds < 2 * _PROBE_AFTER_SECONDS)
                if max(silent_seconds - limit_seconds, stopped_seconds) >= _GIVE_UP_SECONDS:
                    return True
            return False
        finally:
            if self._probe is not None:
                self._probe.cancel()
                await asyncio.wait([self._probe])
            metrics.ENGINE_SERVING.set(0)

    def _send_probe(self) -> None:
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        # The answer shows as a step of the engine; its absence as silence.
        with contextlib.suppress(AttuneError):
            await self._engine.probe(_PROBE_DEADLINE_SECONDS)

    async def _tell(self, serving: bool) -> None:
        if serving != self._serving:
            self._serving = serving
            metrics.ENGINE_SERVING.set(serving)
            logger.log(logging.INFO if serving else logging.ERROR, "health changed", extra={"serving": serving})
            await self._say(serving)
