"""What one sees while a rehearsal runs: a live picture in a terminal, plain lines elsewhere.

`picture` is a pure function of the journal, the time and the size; it is drawn for terminals from 80 x 24 upwards, and
leaves the ring out where there is no room for it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from rich.align import Align
from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from attune.ids import BASE_POLICY
from attune.rehearsal.journal import Exchange, Journal, Tally
from attune.runtime import pause

_FRAME_SECONDS = 0.25
_PLAIN_SECONDS = 10.0
# How long something that just happened is still shown as moving.
_LINGER_SECONDS = 3.0
_RING_COLUMNS = (0, 13, 31, 48, 63)
_RING_WIDTH = 74
_POLICIES_SHOWN = 4


@contextlib.asynccontextmanager
async def shown(journal: Journal, now: Callable[[], float], console: Console, *, plain: bool) -> AsyncIterator[None]:
    """Shows the journal while the body runs, and everything that was told once it has ended."""
    stopping = asyncio.Event()
    loop = _plain_lines(journal, now, console, stopping) if plain else _live(journal, now, console, stopping)
    showing = asyncio.create_task(loop, name="view")
    try:
        yield
    finally:
        stopping.set()
        await showing


async def _live(journal: Journal, now: Callable[[], float], console: Console, stopping: asyncio.Event) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while not stopping.is_set():
            live.update(picture(journal, now(), *console.size), refresh=True)
            await pause(stopping, _FRAME_SECONDS)


async def _plain_lines(journal: Journal, now: Callable[[], float], console: Console, stopping: asyncio.Event) -> None:
    told, next_status = 0, _PLAIN_SECONDS
    while True:
        last = stopping.is_set()
        for event in journal.events[told:]:
            console.print(f"[{event.at:5.0f} s] {event.text}", markup=False, highlight=False, soft_wrap=True)
        told = len(journal.events)
        if last:
            return
        if now() >= next_status:
            next_status = now() + _PLAIN_SECONDS
            console.print(f"[{now():5.0f} s]   {status(journal)}", markup=False, highlight=False, soft_wrap=True)
        await pause(stopping, _FRAME_SECONDS)


def status(journal: Journal) -> str:
    """One line for where things stand."""
    parts = [f"{_waiting(journal)}{_fraction(journal)}"]
    if journal.tallies and journal.users_talking:
        votes = sum(tally.votes for tally in journal.tallies.values())
        parts.append(f"{votes} votes, {journal.open_streams} streams open, {journal.broken_streams} broken")
        newest = list(journal.tallies)[-1]
        tally = journal.tallies[newest]
        parts.append(f"{newest}: {tally.approval.share:.0%} approval of {tally.votes}")
        if journal.trains:
            parts.append(_training(journal))
    return "; ".join(parts)


def _waiting(journal: Journal) -> str:
    return f"waiting for {journal.waiting_for}" if journal.waiting_for else journal.stage


def _fraction(journal: Journal) -> str:
    return f" ({journal.progress[0]} of {journal.progress[1]})" if journal.progress else ""


def _training(journal: Journal) -> str:
    ring = journal.ring
    steps = f", step {ring.training_step} of {ring.training_steps}" if ring.training_steps else ""
    return f"trainer: {ring.training_state}{steps}"


def picture(journal: Journal, now: float, width: int, height: int) -> RenderableType:
    """The whole screen."""
    roomy = width >= _RING_WIDTH + 4 and height >= 20
    told = max(2, min(6, (height - 16) // 3))
    root = Layout()
    rows = [Layout(_header(journal, now), size=1)]
    if roomy:
        ring = Align.center(_ring(journal, now), width=_RING_WIDTH)
        rows.append(Layout(Panel(ring, border_style="dim", padding=(0, 1)), size=7))
    body = Layout()
    right = 34 if width < 96 else 38
    rows_inside = height - 1 - (7 if roomy else 0) - (told + 3) - 2
    body.split_row(
        Layout(_conversations(journal, rows_inside, width - right - 4)),
        Layout(_policies(journal, right - 4, rows_inside), size=right),
    )
    rows.append(body)
    rows.append(Layout(_story(journal, told, width - 4), size=told + 3))
    root.split_column(*rows)
    return root


def _header(journal: Journal, now: float) -> RenderableType:
    line = Table.grid(expand=True)
    line.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    line.add_column(no_wrap=True, justify="right")
    left = Text.assemble(("attune rehearsal", "bold"), "  ", (journal.stage, "cyan"))
    line.add_row(left, f"{_clock(now)} of {_clock(journal.budget_seconds)}  seed {journal.seed}")
    return line


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


def _ring(journal: Journal, now: float) -> RenderableType:
    """The ring: five stations on the way out, three on the way back. A dot on an arrow: something moves there."""
    ring, lately = journal.ring, _Lately(journal, now)
    open_calls = max(journal.open_streams, ring.requests_in_flight)
    talking = open_calls > 0
    reading = ring.event_log_depth > 0 or talking
    training = journal.trains
    current = _current_policy(journal)
    figures_out = (
        f"{journal.users_talking} talking",
        f"{current}, {open_calls} open" if talking else current,
        f"{ring.event_log_depth:,} waiting",
        f"{ring.lake_rows:,} rows",
        f"{ring.datasets} built",
    )
    refused = sum(not verdict.passed for verdict in journal.verdicts.values())
    judged = len(journal.verdicts)
    figures_back = (
        "",
        f"{len(journal.rolled_out_at)} promoted",
        f"{judged} judged" + (f", {refused} refused" if refused else ""),
        _trainer_figure(journal),
        "",
    )
    names = _line(now, ("users", "inference", "event log", "lake", "datasets"), "▶",
                  (talking, talking, reading, lately.built))  # fmt: skip
    back = _line(
        now, ("", "rollout", "registry", "trainer", ""), "◀", (False, lately.promoted, lately.judged, training)
    )
    column = _RING_COLUMNS[4] + 3
    turn = Text.assemble(
        " " * (_RING_COLUMNS[1] + 3),
        ("▲", "bold green" if lately.swapped else "dim"),
        " " * (column - _RING_COLUMNS[1] - 4),
        ("│", "bold green" if training or lately.built else "dim"),
    )
    back.append("╯", "bold green" if training else "dim")
    return Group(names, _figures(figures_out), turn, back, _figures(figures_back))


class _Lately:
    """What happened in the last moments."""

    def __init__(self, journal: Journal, now: float) -> None:
        since = now - _LINGER_SECONDS
        recent = [event.text for event in journal.events[-12:] if event.at >= since]
        self.built = any(text.startswith("dataset ") for text in recent)
        self.judged = any("the gate" in text or "was refused" in text for text in recent)
        self.promoted = any(at >= since for at in journal.rolled_out_at.values())
        self.swapped = any(at >= since for policy, at in journal.serving_at.items() if policy != BASE_POLICY)


def _line(now: float, names: tuple[str, ...], head: str, moving: tuple[bool, ...]) -> Text:
    """Stations at their columns with arrows between; an arrow without a station on its left is left out."""
    text = Text(no_wrap=True)
    for index, name in enumerate(names):
        text.append(name, "bold")
        if index == len(names) - 1:
            break
        end = _RING_COLUMNS[index + 1] - (0 if names[index + 1] == "" else 1)
        room = end - _RING_COLUMNS[index] - len(name)
        if not name:
            text.append(" " * (room + 1))
            continue
        if names[index + 1] == "":
            room += 3
        shaft = ["─"] * (room - 2)
        if moving[index]:
            place = int(now * 8) % len(shaft)
            shaft[place if head == "▶" else -1 - place] = "●"
        style = "green" if moving[index] else "dim"
        text.append(" ")
        text.append("".join(shaft) + head if head == "▶" else head + "".join(shaft), style)
        text.append("" if names[index + 1] == "" else " ")
    return text


def _figures(figures: tuple[str, ...]) -> Text:
    text = Text(no_wrap=True)
    for index, figure in enumerate(figures):
        text.append(figure, "cyan")
        if index < len(figures) - 1:
            text.append(" " * max(1, _RING_COLUMNS[index + 1] - len(text.plain)))
    return text


def _trainer_figure(journal: Journal) -> str:
    ring = journal.ring
    if not journal.trains:
        return "waits"
    if ring.training_state == "training" and ring.training_steps:
        return f"step {ring.training_step} of {ring.training_steps}"
    return ring.training_state


def _current_policy(journal: Journal) -> str:
    return list(journal.serving_at)[-1] if journal.serving_at else BASE_POLICY


def _conversations(journal: Journal, rows: int, width: int) -> RenderableType:
    newest = list(journal.latest)[-max(1, rows // 2) :]
    lines = [line for exchange in newest for line in _exchange(exchange, width)]
    return Panel(Group(*lines), title="conversations", title_align="left", border_style="dim", padding=(0, 1))


def _exchange(exchange: Exchange, width: int) -> tuple[Text, Text]:
    asked = Text(no_wrap=True, overflow="ellipsis")
    who = exchange.policy_id if exchange.thumb_up is not None else exchange.persona
    asked.append(_cut(exchange.question, width - len(who) - 1), "dim")
    asked.append(" " * max(1, width - len(asked.plain) - len(who)))
    asked.append(who, "blue")
    marks = {None: (" ", ""), True: ("▲", "bold green"), False: ("▼", "bold red")}
    mark, style = marks[exchange.thumb_up]
    answered = Text(no_wrap=True, overflow="ellipsis")
    answered.append(f"{mark} ", style)
    answered.append(_cut(exchange.answer, width - 2))
    if exchange.thumb_up is not None and exchange.thumb_up != exchange.as_wished:
        note = " (a wrong thumb)"
        answered.truncate(max(0, width - len(note)))
        answered.append(note, "yellow")
    return asked, answered


def _cut(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: max(0, width - 1)] + "…"


def _policies(journal: Journal, width: int, rows: int) -> RenderableType:
    """Two bars for each policy that users met: thumbs up, and errands falsely said to be done."""
    lines: list[Text] = []
    shown = list(journal.tallies.items())
    room = max(1, min(_POLICIES_SHOWN, rows // 2))
    if len(shown) > room:
        shown = [shown[0], *shown[len(shown) - room + 1 :]] if room > 1 else shown[-1:]
    for policy_id, tally in shown:
        lines += _bars(policy_id, tally, width)
    if not lines:
        lines = [Text("nobody has voted yet", "dim")]
    title = Text.assemble("votes ", ("▲ up", "green"), " ", ("✗ false claims", "red"))
    return Panel(Group(*lines), title=title, title_align="left", border_style="dim", padding=(0, 1))


def _bars(policy_id: str, tally: Tally, width: int) -> list[Text]:
    lines = []
    for label, sign, figure, style in (
        (policy_id, "▲", tally.approval, "green"),
        (f"{tally.votes} votes", "✗", tally.claimed, "red"),
    ):
        line = Text(no_wrap=True)
        line.append(f"{label:<11}", "bold" if label == policy_id else "dim")
        line.append(f"{sign} ", style)
        room = width - 13 - 6
        full = round(figure.share * room) if figure.trials else 0
        line.append("█" * full, style)
        line.append("░" * (room - full), "dim")
        line.append(f" {figure.share:4.0%}" if figure.trials else "    –", "bold")
        lines.append(line)
    return lines


def _story(journal: Journal, told: int, width: int) -> RenderableType:
    lines = [_progress(journal, width)]
    lines += [
        Text.assemble((f"{_clock(event.at)}  ", "dim"), _cut(event.text, width - 7), no_wrap=True)
        for event in journal.events[-told:]
    ]
    return Panel(Group(*lines), border_style="dim", padding=(0, 1))


def _progress(journal: Journal, width: int) -> Text:
    """What is waited for, with a bar where there is a measure of it."""
    ring = journal.ring
    text, measure, done, whole = _waiting(journal), "", 0, 0
    if journal.progress:
        done, whole = journal.progress
    elif journal.trains and ring.training_state == "training" and ring.training_steps:
        measure, done, whole = "steps ", ring.training_step, ring.training_steps
    elif journal.training_since is None and ring.new_feedback:
        measure, done, whole = "votes ", min(ring.new_feedback, journal.build_feedback), journal.build_feedback
    line = Text(no_wrap=True)
    if whole:
        bar = 20
        full = round(bar * done / whole)
        line.append("━" * full, "magenta")
        line.append("━" * (bar - full), "dim")
        line.append(f" {measure}{done}/{whole}  ", "magenta")
    line.append(_cut(text, width - len(line.plain)), "bold")
    return line
