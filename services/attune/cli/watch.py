"""What running services say of themselves: their endpoints, and a look at their metrics pages."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from attune.addresses import reachable
from attune.errors import Unavailable
from attune.ids import policy_id
from attune.metrics_page import fetch_page
from attune.runtime import read_endpoints

_SERVING = re.compile(r"^attune_engine_serving (\S+)$", re.MULTILINE)
_POLICY = re.compile(r'^attune_policy_in_service\{persona="([^"]+)"\} (\S+)$', re.MULTILINE)
_LONGEST_LOOK_SECONDS = 2.0
_TIMEOUT_SECONDS = 0.5
# One that answers nothing for a while may only be starved, as training at low priority on a busy machine is.
_PATIENT_AFTER_SECONDS = 5.0
_PATIENT_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True)
class Page:
    """What one look at a metrics page showed; every service's page has all of it, inference's means it."""

    engine_serving: bool
    policies: Mapping[str, str]


def read_page(text: str) -> Page:
    """Picks what the supervisor wants to know out of a page in Prometheus' text format."""
    serving = _SERVING.search(text)
    return Page(
        engine_serving=serving is not None and float(serving[1]) == 1,
        policies={persona: policy_id(int(float(number))) for persona, number in _POLICY.findall(text)},
    )


@dataclass
class Watched:
    """One service as it is seen from outside. `look` is to be called about once a second."""

    name: str
    host: str
    tls: bool = False
    endpoints: dict[str, int] = field(default_factory=dict)
    ready: bool = False
    unwell_seconds: float = 0.0
    policies: dict[str, str] = field(default_factory=dict)
    pid: int | None = None
    _looked_at: float = 0.0

    def look(self, data: Path, pid: int | None, now: float) -> None:
        """Ready is a process that has written its endpoints and whose page answers: inference's, that it serves.

        Time counts as unwell only as far as there were looks: a supervisor that was suspended blames nobody.
        """
        passed = min(now - self._looked_at, _LONGEST_LOOK_SECONDS)
        self._looked_at = now
        if pid != self.pid:
            self.pid, self.ready, self.unwell_seconds = pid, False, 0.0
            passed = 0.0
        patient = self.unwell_seconds > _PATIENT_AFTER_SECONDS
        page = self._page(data, pid, _PATIENT_TIMEOUT_SECONDS if patient else _TIMEOUT_SECONDS)
        if page is not None and (page.engine_serving or self.name != "inference"):
            self.ready, self.unwell_seconds, self.policies = True, 0.0, dict(page.policies)
        elif pid is not None:
            self.unwell_seconds += passed

    def _page(self, data: Path, pid: int | None, timeout_seconds: float) -> Page | None:
        try:
            endpoints = read_endpoints(data, self.name)
        except Unavailable:
            return None
        if pid is None or endpoints.get("pid") != pid or "metrics" not in endpoints:
            return None
        self.endpoints = endpoints
        text = fetch_page(reachable(self.host), endpoints["metrics"], tls=self.tls, timeout_seconds=timeout_seconds)
        return None if text is None else read_page(text)
