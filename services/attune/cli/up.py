"""`attune up`: the whole ring on one machine."""

import contextlib
import errno
import importlib.metadata
import json
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table

from attune import addresses
from attune.cli.preflight import IN_ORDER, check_ports, check_start, dangers, services_of, unapplied
from attune.cli.supervisor import Exited, Service, Started, Supervisor, hold
from attune.cli.watch import Watched
from attune.errors import FailedPrecondition, Unavailable
from attune.ids import BASE_POLICY
from attune.personas import Personas
from attune.personas.api_keys import local_api_key
from attune.runtime import clear_endpoints, stop_on_signals
from attune.settings import Settings

_TICK_SECONDS = 0.1
_LOOK_SECONDS = 1.0
_SAY_SECONDS = 10.0
_LEFTOVER_SECONDS = 10.0
_STARTS_THAT_MAY_FAIL = 3
# Nobody who chats waits for it: its store of curves may be damaged, or its disk full.
_OTHERS_GO_ON_WITHOUT = "trainer"
_FULL_BYTES = 1 << 20
_STARTING = {"inference": "loading the model, 15 to 60 s"}
_MODULE = {"broker": "attune.eventlog.broker"}


def ring(settings: Settings, config: Path | None) -> list[Service]:
    """The services of attune; settings given on the command line reach them by the environment."""
    options = () if config is None else ("--config", str(config))
    modules = {name: _MODULE.get(name, f"attune.{name}.main") for name in services_of(settings)}
    return [Service(name, (sys.executable, "-P", "-m", module, *options)) for name, module in modules.items()]


def up(settings: Settings, services: Sequence[Service], environment: Mapping[str, str], console: Console) -> bool:
    """Runs the services until SIGTERM, SIGINT or SIGHUP; True when all of them then stopped in order.

    Raises an AttuneError before anything is started when the settings cannot work, and after everything is stopped
    when a service cannot be started. Main thread only.
    """
    check_start(settings)
    with _full_disk_named(settings.data), hold(settings.data, _LEFTOVER_SECONDS) as lock:
        check_ports(settings)
        _prepare_kafka(settings, console)
        known = Personas.open(settings.data, settings.personas_folder, settings.default_persona)
        personas = sorted((each.label for each in known), key=lambda name: (name != settings.default_persona, name))
        for service in services:
            clear_endpoints(settings.data, service.name)
        stopping, hurried = _signals()
        supervisor = Supervisor(
            services,
            log_folder=settings.data / "logs",
            environment={**environment, "PYTHONUNBUFFERED": "1"},
            keep_descriptors=(lock,),
            first_backoff_seconds=settings.supervisor.restart_backoff_seconds,
        )
        secure = settings.tls.certificate is not None
        watched = [Watched(service.name, getattr(settings, service.name).host, secure) for service in services]
        with supervisor:
            try:
                _say_start(settings, personas, console)
                _say_unapplied(settings, unapplied(settings, known), console)
                if _wait_until_ready(supervisor, watched, settings, stopping, console):
                    endpoints = {each.name: each.endpoints for each in watched if each.ready}
                    _say_places(places(settings, personas, endpoints, show_key=console.is_terminal), console)
                    _keep(supervisor, watched, settings, stopping, console)
            finally:
                in_order = _drain(supervisor, watched, settings.supervisor.stop_seconds, hurried, console)
                for service in services:
                    clear_endpoints(settings.data, service.name)
    return in_order


@contextlib.contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    """An error of a write names no file, as one of opening does."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}:
            error.filename = str(folder)
        raise


def _prepare_kafka(settings: Settings, console: Console) -> None:
    """The jars of a broker of our own; the topics of another, if it answers: chat does without it for as long."""
    if settings.broker.enabled:
        from attune.eventlog.broker import cached_jars, fetch_jars

        if not cached_jars().is_dir():
            console.print("bringing Kafka's jars with Maven, 45 MB, this once")
        fetch_jars()
    elif settings.kafka.servers:
        from attune.eventlog.cluster import Cluster
        from attune.eventlog.topics import TopicRules, create_topics

        try:
            made = create_topics(Cluster.of(settings.kafka), TopicRules.of(settings.kafka))
        except (Unavailable, FailedPrecondition) as error:
            console.print(f"[yellow]warning[/] {escape(error.message)}; until then events wait in the spool")
        else:
            if made:
                console.print(f"made the topics {escape(', '.join(made))}")


def _signals() -> tuple[threading.Event, threading.Event]:
    """The events `stop` (any signal) and `hurry` (a second Ctrl-C)."""
    hurried = threading.Event()
    interrupts = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            hurried.set()
        stopping.set()

    stopping = stop_on_signals()
    signal.signal(signal.SIGINT, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, lambda *_: stopping.set())
    return stopping, hurried


def _say_start(settings: Settings, personas: Sequence[str], console: Console) -> None:
    console.print(
        f"[bold]attune {importlib.metadata.version('attune')}[/] · model {escape(settings.model)} "
        f"· personas {', '.join(personas)} · data {escape(str(settings.data))}"
    )
    for danger in dangers(settings):
        console.print(f"[yellow]warning[/] {escape(danger)}")


def _say_unapplied(settings: Settings, labels: Sequence[str], console: Console) -> None:
    if labels:
        console.print(
            f"[yellow]warning[/] {', '.join(labels)} in {escape(str(settings.personas_folder))} is not what was "
            "applied: `attune persona diff` shows how, `attune persona apply` puts it in service"
        )


def _wait_until_ready(
    supervisor: Supervisor,
    watched: Sequence[Watched],
    settings: Settings,
    stopping: threading.Event,
    console: Console,
) -> bool:
    """False when it is to stop before; raises Unavailable when a service keeps failing or takes too long.

    A trainer that fails is said, tried again, and not waited for.
    """
    began = time.monotonic()
    said_at = began
    waiting = {each.name for each in watched}
    with _progress(console) as progress:
        while waiting:
            if stopping.wait(_TICK_SECONDS):
                return False
            for event in supervisor.tick():
                _say(event, supervisor, console)
                if isinstance(event, Exited) and event.service == _OTHERS_GO_ON_WITHOUT:
                    if event.service in waiting:
                        waiting.remove(event.service)
                        _line(console, f"[yellow]the others go on without the {event.service}[/], which is tried again")
                elif isinstance(event, Exited) and event.failures >= _STARTS_THAT_MAY_FAIL:
                    raise Unavailable(
                        f"{event.service} does not start: it {event.how} {event.failures} times; "
                        f"{_last_words(supervisor.log(event.service))}"
                    )
            now = time.monotonic()
            for each in [each for each in watched if each.name in waiting]:
                each.look(settings.data, supervisor.pid(each.name), now)
                if each.ready:
                    waiting.remove(each.name)
                    console.print(f"  [green]✓[/] {each.name} [dim]after {now - began:.0f} s[/]")
            if now - began > settings.supervisor.start_seconds:
                names = ", ".join(sorted(waiting))
                raise Unavailable(
                    f"{names} not ready after {settings.supervisor.start_seconds:g} s; see {settings.data / 'logs'}"
                )
            text = _waiting_text(waiting, now - began)
            if progress is not None:
                progress.update(Spinner("dots", text), refresh=True)
            elif waiting and now - said_at > _SAY_SECONDS:
                said_at = now
                console.print(text)
    return True


def _waiting_text(waiting: set[str], seconds: float) -> str:
    names = [f"{name} ({_STARTING[name]})" if name in _STARTING else name for name in IN_ORDER if name in waiting]
    return f"waiting for {', '.join(names)} [dim]{seconds:.0f} s[/]"


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Live | None]:
    """A line that is redrawn by hand: a thread of Rich's own would be there when a service is forked."""
    if not console.is_terminal:
        yield None
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield live


def places(
    settings: Settings, personas: Sequence[str], endpoints: Mapping[str, Mapping[str, int]], *, show_key: bool = False
) -> list[tuple[str, str]]:
    """Where everything is, and what to do next: names and values. A secret is for a person's eyes, not for a log."""

    def grpc(service: str) -> str:
        return addresses.join(getattr(settings, service).host, endpoints[service]["grpc"])

    scheme = "http" if settings.tls.certificate is None else "https"
    pages = {
        service: f"{scheme}://{addresses.join(getattr(settings, service).host, endpoints[service]['metrics'])}/metrics"
        for service in services_of(settings)
        if service in endpoints
    }
    chat = "attune chat"
    if settings.data != Path("attune-data").absolute():
        chat += f" --data {shlex.quote(str(settings.data))}"
    return [
        ("chat and feedback", f"{grpc('inference')} (gRPC)"),
        (
            "the same for OpenAI clients",
            f"{scheme}://{addresses.join(settings.inference.host, endpoints['inference']['http'])}/v1",
        ),
        ("API key", _key_text(settings, shown=show_key)),
        ("personas", ", ".join([f"{personas[0]} (default)", *personas[1:]])),
        ("receipts", f"{grpc('aggregator')} (gRPC)"),
        ("policies", f"{grpc('rollout')} (gRPC)"),
        *((f"metrics of {service}", page) for service, page in pages.items()),
        *((("event log", f"Kafka at {', '.join(settings.kafka.servers)}"),) if settings.kafka.servers else ()),
        ("training runs", f"mlflow ui --backend-store-uri {shlex.quote(_without_credentials(settings.mlflow_uri))}"),
        ("data", str(settings.data)),
        ("logs", str(settings.data / "logs")),
        ("talk to it", chat),
        ("stop it", "Ctrl-C, or SIGTERM"),
    ]


def _key_text(settings: Settings, *, shown: bool) -> str:
    key = local_api_key(settings.data)
    if not key:
        return "make one with `attune key create`"
    return key if shown else f"in {settings.data / 'access' / 'development.key'}"


def _say_places(rows: Sequence[tuple[str, str]], console: Console) -> None:
    if not console.is_terminal:
        for name, value in rows:
            console.print(f"{name}: {value}", markup=False)
        console.print("attune is up")
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, escape(value))
    console.print(Panel(grid, title="[bold green]attune is up[/]", border_style="green", expand=False))


def _without_credentials(uri: str) -> str:
    return "trainer.mlflow_uri" if "@" in uri else uri


def _keep(
    supervisor: Supervisor, watched: Sequence[Watched], settings: Settings, stopping: threading.Event, console: Console
) -> None:
    """Until it is to stop: restarts what exits, kills what is unwell for too long, says what changes."""
    looked_at = time.monotonic()
    policies = {persona: policy for each in watched for persona, policy in each.policies.items()}
    while not stopping.wait(_TICK_SECONDS):
        for event in supervisor.tick():
            _say(event, supervisor, console)
        now = time.monotonic()
        if now - looked_at < _LOOK_SECONDS:
            continue
        looked_at = now
        for each in watched:
            was_ready = each.ready and each.pid == supervisor.pid(each.name)
            each.look(settings.data, supervisor.pid(each.name), now)
            if each.ready and not was_ready:
                _line(console, f"{each.name} is ready")
            limit = settings.supervisor.silent_seconds if each.ready else settings.supervisor.start_seconds
            if each.unwell_seconds > limit:
                _line(console, f"[red]{each.name} was not well for {limit:g} s[/]; killing it to start it anew")
                supervisor.kill(each.name)
                each.unwell_seconds = 0
            if each.ready and each.unwell_seconds == 0:
                for persona, policy in each.policies.items():
                    before = policies.get(persona, BASE_POLICY)
                    if policy != before:
                        _line(console, f"[bold]{persona}[/]: now answering: [green]{policy}[/] [dim](was {before})[/]")
                        policies[persona] = policy


def _drain(
    supervisor: Supervisor,
    watched: Sequence[Watched],
    stop_seconds: float,
    hurried: threading.Event,
    console: Console,
) -> bool:
    _line(console, "stopping [dim](Ctrl-C again ends everything at once)[/]")
    ready = {each.name for each in watched if each.ready and each.pid == supervisor.pid(each.name)}
    in_order = True
    for stopped in supervisor.drain(ready, stop_seconds, hurried.is_set):
        in_order = in_order and stopped.in_order
        how = f"stopped in {stopped.seconds:.1f} s" if stopped.in_order else f"[red]{stopped.how}[/]"
        _line(console, f"{stopped.service} {how}")
    return in_order


def _say(event: Exited | Started, supervisor: Supervisor, console: Console) -> None:
    if isinstance(event, Started):
        _line(console, f"{event.service} started anew [dim](process {event.pid})[/]")
        return
    words = "" if event.how.startswith("was killed") else f" ({_last_words(supervisor.log(event.service))})"
    _line(
        console,
        f"[red]{event.service} {event.how}[/] after {event.ran_seconds:.0f} s, "
        f"starting it anew in {event.restart_in_seconds:g} s{escape(words)}",
    )


def _line(console: Console, text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}")


def _last_words(log: Path, most_bytes: int = 8192) -> str:
    """The last thing a log says, and where the rest is."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - most_bytes))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    if not lines:
        full = shutil.disk_usage(log.parent).free < _FULL_BYTES if log.parent.is_dir() else False
        return f"the disk of {log.parent} is full" if full else f"{log} says nothing"
    try:
        said = str(json.loads(lines[-1])["message"])
    except (ValueError, KeyError, TypeError):
        said = lines[-1]
    return f"the last of {log}: {said[:300]}"


def steady_console() -> Console:
    """A console that goes quiet, and does not end the ring, when the terminal or pipe is gone."""
    return _SteadyConsole(highlight=False, soft_wrap=not sys.stdout.isatty())


class _SteadyConsole(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError:
            self.quiet = True

    def on_broken_pipe(self) -> None:
        self.quiet = True
