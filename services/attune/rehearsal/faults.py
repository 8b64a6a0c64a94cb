"""Kills a working ring, part by part and as a whole, and looks whether anything is lost.

    python -m attune.rehearsal.faults --config deploy/demo.toml [--data FOLDER] [--rounds 2]

Clients talk and vote meanwhile, and write down what they were told; nobody stops for a fault. Afterwards every
acknowledged response and feedback must be in the lake exactly once, word for word; nothing of a killed ring may still
run; and the ring must train again. Exits 0 only then.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from attune.client import Client, Retry
from attune.errors import AttuneError, DeadlineExceeded, ResourceExhausted, Unavailable
from attune.lake.audit import Audit, audit, count_ids
from attune.lake.tables import RESPONSES
from attune.personas.api_keys import local_api_key
from attune.rehearsal.demo.prompts import likes, user_prompts
from attune.rehearsal.ring import FREE_PORTS, SERVICES
from attune.runtime import read_endpoints

PARTS = ("aggregator", "rollout", "trainer", "inference", "engine", "supervisor", "everything")
"""What is killed, in this order; the engine is a child of inference."""
ALWAYS_LEARN = {"ATTUNE_TRAINER__GATE__ENOUGH_APPROVAL": "1"}
"""By this setting no cycle is skipped because there is little left to learn."""
PERSONA = "concierge"

# What a client may meet while a server dies or is not there.
_EXPECTED = (Unavailable, ResourceExhausted, DeadlineExceeded)

_LOOK_SECONDS = 0.1
_CALL_SECONDS = 20.0
_READY_SECONDS = 240.0
# The trainer gives way to everything else that runs.
_TRAINED_SECONDS = 600.0
_ROUND_SECONDS = 120.0
_ROUND_RESPONSES = 10
_GONE_SECONDS = 10.0
_STOP_SECONDS = 60.0
_USERS = 40

_T = TypeVar("_T")


class FaultError(AttuneError):
    """Something that must hold under faults did not."""


def until(condition: Callable[[], _T | None], seconds: float, what: str) -> _T:
    """The first true value of the condition; raises FaultError after that time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise FaultError(f"{what}: still not so after {seconds:.0f} s")
        time.sleep(_LOOK_SECONDS)
    return value


class Ledger:
    """What clients were told, one JSON object a line, each line durable before the client goes on."""

    def __init__(self, file: Path) -> None:
        self._stream = file.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self.responses: dict[str, tuple[str, str]] = {}
        """Policy and SHA-256 of the text, by response id."""
        self.feedback: dict[str, str] = {}
        """Response id, by feedback id."""

    def told_response(self, response_id: str, policy_id: str, text: str) -> None:
        digest = hashlib.sha256(text.encode()).hexdigest()
        self._write({"response_id": response_id, "policy_id": policy_id, "text_sha256": digest})
        self.responses[response_id] = (policy_id, digest)

    def told_feedback(self, feedback_id: str, response_id: str) -> None:
        self._write({"feedback_id": feedback_id, "response_id": response_id})
        self.feedback[feedback_id] = response_id

    def answered_by(self, policy_id: str) -> bool:
        return any(policy == policy_id for policy, _ in list(self.responses.values()))

    def close(self) -> None:
        self._stream.close()

    def _write(self, line: Mapping[str, str]) -> None:
        with self._lock:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())


class Load:
    """Clients that talk and vote until told to stop, whatever happens to the servers.

    Every other call is a stream. A client that fails finds out anew where the server is and goes on.
    """

    def __init__(self, data: Path, ledger: Ledger, *, talkers: int, seed: int) -> None:
        self._data = data
        self._ledger = ledger
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._talk, args=(random.Random(f"load/{seed}/{talker}"),), daemon=True)
            for talker in range(talkers)
        ]
        self.failures: Counter[str] = Counter()
        self.surprises: list[str] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(_CALL_SECONDS * 2)

    def _talk(self, rng: random.Random) -> None:
        while not self._stopping.is_set():
            try:
                with Client(
                    self._address(),
                    api_key=local_api_key(self._data),
                    timeout_seconds=_CALL_SECONDS,
                    retry=Retry(attempts=1),  # what breaks is to be seen
                ) as client:
                    self._talk_to(client, rng)
            except _EXPECTED as error:
                self.failures[type(error).__name__] += 1
                self._stopping.wait(0.2)
            except AttuneError as error:
                self.surprises.append(f"{type(error).__name__}: {error.message}")
                self._stopping.wait(0.2)

    def _address(self) -> str:
        return f"127.0.0.1:{read_endpoints(self._data, 'inference')['grpc']}"

    def _talk_to(self, client: Client, rng: random.Random) -> None:
        for number, item in enumerate(user_prompts(rng.randrange(2**31))):
            if self._stopping.is_set():
                return
            user = f"guest-{rng.randrange(_USERS):03d}"
            if number % 2:
                response = client.chat(item.messages, persona=PERSONA, end_user_id=user)
            else:
                with client.stream(item.messages, persona=PERSONA, end_user_id=user) as stream:
                    for _ in stream:
                        pass
                    response = stream.response
            self._ledger.told_response(response.response_id, response.policy_id, response.text)
            feedback_id = response.up() if likes(item, response.text) else response.down()
            self._ledger.told_feedback(feedback_id, response.response_id)
            self._stopping.wait(rng.expovariate(4))


class Ring:
    """A real `attune up`, and everything that it starts. Its output goes to `<data>/logs/up.log`."""

    def __init__(self, data: Path, config: Path | None, overrides: Mapping[str, str]) -> None:
        self.data = data
        data.mkdir(parents=True, exist_ok=True)
        self._command = [sys.executable, "-m", "attune.cli.main", "up", "--data", str(data)]
        if config is not None:
            self._command += ["--config", str(config)]
        self._environment = {**os.environ, "ATTUNE_DATA": str(data), **overrides}
        self._up: subprocess.Popen[bytes] | None = None
        self._known: dict[tuple[int, float], psutil.Process] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._up is not None and self._up.poll() is None:
            self.kill_all()
        for process in self.left():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def start(self) -> None:
        (self.data / "logs").mkdir(parents=True, exist_ok=True)
        with (self.data / "logs" / "up.log").open("ab") as log:
            self._up = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Until every service has said where it listens and runs."""
        for service in SERVICES:
            until(lambda service=service: self.pid(service), _READY_SECONDS, f"{service} is ready")  # type: ignore[misc]
        self.processes()

    def pid(self, service: str) -> int | None:
        """The running process of a service that is ready."""
        if self._up is None or self._up.poll() is not None:
            raise FaultError(f"`attune up` ended: {self.last_words()}")
        try:
            pid = read_endpoints(self.data, service)["pid"]
            return pid if psutil.Process(pid).ppid() == self._up.pid else None
        except (Unavailable, psutil.NoSuchProcess):
            return None

    def processes(self) -> list[psutil.Process]:
        """Every process of the ring now, the supervisor first."""
        if self._up is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(self._up.pid)
            found = [supervisor, *supervisor.children(recursive=True)]
            self._known.update({(process.pid, process.create_time()): process for process in found})
            return found
        return []

    def kill(self, part: str) -> None:
        """kill -9 of a service's own process, or of the engine; returns once another one is ready in its place."""
        service = "inference" if part == "engine" else part
        pid = until(lambda: self.pid(service), _READY_SECONDS, f"{service} runs")
        before = [process for process in self.processes() if _session(process) == pid]
        os.kill(_largest(before, but=pid).pid if part == "engine" else pid, signal.SIGKILL)
        until(lambda: self.pid(service) not in (None, pid), _READY_SECONDS, f"{service} runs again")
        self.processes()
        until(lambda: not any(map(_runs, before)), _GONE_SECONDS, f"all of the killed {service} is gone")

    def kill_supervisor(self) -> None:
        """kill -9 of `attune up` alone; returns once nothing of the ring is left."""
        assert self._up is not None
        self.processes()
        self._up.kill()
        self._up.wait()
        self._until_gone("the ring whose supervisor was killed")

    def kill_all(self) -> None:
        """kill -9 of every process of the ring at once."""
        assert self._up is not None
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._up.wait()
        self._until_gone("the killed ring")

    def stop(self) -> None:
        """SIGTERM; raises FaultError unless it ends in order and leaves nothing."""
        assert self._up is not None
        self.processes()
        self._up.terminate()
        try:
            status = self._up.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise FaultError(f"`attune up` did not end within {_STOP_SECONDS:.0f} s of SIGTERM") from None
        if status != 0:
            raise FaultError(f"`attune up` ended with {status} after SIGTERM: {self.last_words()}")
        self._until_gone("the stopped ring")

    def left(self) -> list[psutil.Process]:
        """What still runs of this ring: processes seen before, and any that was started for its data folder."""
        found = {key: process for key, process in self._known.items() if _runs(process)}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get("ATTUNE_DATA") == str(self.data):
                    found[process.pid, process.create_time()] = process
        return [process for process in found.values() if _runs(process)]

    def _until_gone(self, what: str) -> None:
        try:
            until(lambda: not self.left(), _GONE_SECONDS, f"nothing is left of {what}")
        except FaultError as error:
            names = ", ".join(f"{process.pid} {process.name()}" for process in self.left())
            raise FaultError(f"{error.message}; there is {names}") from None

    def last_words(self) -> str:
        text = (self.data / "logs" / "up.log").read_text(encoding="utf-8", errors="replace")
        return " / ".join(text.strip().splitlines()[-5:])


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _largest(processes: Sequence[psutil.Process], but: int) -> psutil.Process:
    """The process with the most memory: below inference that is the engine."""
    return max((process for process in processes if process.pid != but), key=lambda process: process.memory_info().rss)


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return -1


@dataclass(frozen=True)
class Fault:
    """What was killed, after how long the ring went round again, and how much had been acknowledged by then."""

    name: str
    recovered_seconds: float
    acknowledged: int

    def __str__(self) -> str:
        return f"{self.name:12} round again after {self.recovered_seconds:5.1f} s; {self.acknowledged} acknowledged"


@dataclass
class Findings:
    """What came of it."""

    faults: list[Fault] = field(default_factory=list)
    failures: Mapping[str, int] = field(default_factory=dict)
    misses: list[str] = field(default_factory=list)
    acknowledged: Audit | None = None
    cycles: int = 0


def rehearse_faults(
    ring: Ring,
    *,
    parts: Sequence[str] = PARTS,
    rounds: int = 1,
    talkers: int = 6,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Findings:
    """Kills each part of a started ring in turn under load, then stops it and compares.

    What is lost or left over is a miss among the findings; raises FaultError when the ring does not come back.
    """
    findings = Findings()
    ledger = Ledger(ring.data / "told.jsonl")
    ring.wait_until_ready()
    with Load(ring.data, ledger, talkers=talkers, seed=seed) as load:
        go_round(ring.data, ledger)
        for name, fault in faults(ring, [*parts] * rounds):
            if name == "trainer":
                until(lambda: running_cycles(ring.data), _ROUND_SECONDS, "a training cycle runs")
            began = time.monotonic()
            fault()
            go_round(ring.data, ledger)
            findings.faults.append(Fault(name, time.monotonic() - began, len(ledger.responses) + len(ledger.feedback)))
            say(str(findings.faults[-1]))
        train_again(ring.data, ledger, say)
    findings.failures = dict(load.failures)
    findings.cycles = len(cycles_since(ring.data, 0))
    findings.misses += sorted(set(load.surprises))
    with contextlib.suppress(FaultError):  # what is missing then is said below
        until(lambda: not compare(ring.data, ledger).missing, _ROUND_SECONDS, "all that was told is in the lake")
    ring.stop()
    ledger.close()
    findings.acknowledged = found = compare(ring.data, ledger)
    findings.misses += [f"told and not in the lake: {name}" for name in found.missing]
    findings.misses += [f"more than once in the lake: {name}" for name in found.repeated]
    findings.misses += differences(ring.data, ledger)
    return findings


def faults(ring: Ring, parts: Sequence[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    """How each part is killed and comes back."""

    def restart(kill: Callable[[], None]) -> None:
        kill()
        ring.start()
        ring.wait_until_ready()

    whole = {"supervisor": ring.kill_supervisor, "everything": ring.kill_all}
    for part in parts:
        if part in whole:
            yield part, partial(restart, whole[part])
        else:
            yield part, partial(ring.kill, part)


def go_round(data: Path, ledger: Ledger) -> None:
    """Returns once some of what is told from now on is in the lake: the whole way works."""
    before = set(ledger.responses)

    def came_through() -> bool:
        told = set(ledger.responses) - before
        return len(told & set(count_ids(data / "lake", RESPONSES, "response_id"))) >= _ROUND_RESPONSES

    until(came_through, _ROUND_SECONDS, "new responses get through to the lake")


def train_again(data: Path, ledger: Ledger, say: Callable[[str], None]) -> None:
    """Returns once a policy was trained and judged from now on, and one that passed answers."""
    now = time.time()

    def trained() -> list[dict[str, Any]]:
        return [cycle for cycle in cycles_since(data, now).values() if cycle["policy_id"]]

    for cycle in until(trained, _TRAINED_SECONDS, "a policy is trained afterwards"):
        policy_id = cycle["policy_id"]
        if cycle["outcome"] == "passed":
            until(partial(ledger.answered_by, policy_id), _ROUND_SECONDS, f"{policy_id} answers")
        say(f"a cycle ended afterwards: {cycle['outcome']} {policy_id}".rstrip())


def compare(data: Path, ledger: Ledger) -> Audit:
    return audit(data / "lake", ledger.responses, ledger.feedback)


def differences(data: Path, ledger: Ledger) -> list[str]:
    """Responses that are in the lake with another text or policy than the client was told."""
    columns = ["response_id", "policy_id", "text"]
    try:
        rows = DeltaTable(data / "lake" / RESPONSES).to_pyarrow_table(columns=columns).to_pylist()
    except TableNotFoundError:
        return []
    stored = {row["response_id"]: (row["policy_id"], hashlib.sha256(row["text"].encode()).hexdigest()) for row in rows}
    return [
        f"not in the lake as it was told: {response_id}"
        for response_id, told in ledger.responses.items()
        if stored.get(response_id, told) != told
    ]


def running_cycles(data: Path) -> list[Path]:
    """Work of cycles that have begun and not ended."""
    return list((data / "trainer" / "work").glob("*/*"))


def cycles_since(data: Path, unix_seconds: float) -> dict[str, Any]:
    """Cycles that ended after that time, by dataset."""
    ended = {}
    for file in (data / "trainer" / "cycles").glob("[!.]*.json"):
        outcome = json.loads(file.read_bytes())
        if outcome["created_unix_ms"] > unix_seconds * 1000:
            ended[file.stem] = outcome
    return ended


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills a working ring and looks whether anything is lost.")
    parser.add_argument("--data", type=Path, help="an empty folder; a temporary one without it")
    parser.add_argument("--config", type=Path, help="settings, TOML")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to kill")
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is killed in turn")
    parser.add_argument("--talkers", type=int, default=6, help="clients at once")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = arguments.data or Path(tempfile.mkdtemp(prefix="attune-faults-"))
    try:
        with Ring(data, arguments.config, {**FREE_PORTS, **ALWAYS_LEARN}) as ring:
            findings = rehearse_faults(
                ring,
                parts=arguments.parts,
                rounds=arguments.rounds,
                talkers=arguments.talkers,
                seed=arguments.seed,
                say=lambda line: print(line, flush=True),  # noqa: T201 - a script
            )
    except FaultError as error:
        sys.exit(error.message)
    sys.stdout.write(report(findings))
    return 1 if findings.misses else 0


def report(findings: Findings) -> str:
    """What was told, what clients met, and every miss."""
    told = 0 if findings.acknowledged is None else findings.acknowledged.acknowledged
    met = ", ".join(f"{count} {name}" for name, count in findings.failures.items()) or "nothing"
    lines = [
        f"{told} acknowledged in all; {findings.cycles} training cycles; clients met {met}",
        *(findings.misses or ["every acknowledged response and feedback is in the lake exactly once; no orphans"]),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
