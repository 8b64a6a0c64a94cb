import asyncio
import io

import pytest
from rich.console import Console

from attune.rehearsal.journal import Journal
from attune.rehearsal.view import picture, shown, status
from tests.rehearsal.sample import sample_journal


def screen(journal: Journal, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(picture(journal, 166.2, width, height), height=height)
    return capture.get().rstrip("\n").split("\n")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60), (60, 20), (40, 12)])
def test_the_picture_fits_the_terminal(width: int, height: int) -> None:
    for journal in (sample_journal(), Journal("concierge", 1, 420, 400)):
        lines = screen(journal, width, height)
        assert len(lines) == height
        assert all(len(line) <= width for line in lines)


def test_the_picture_shows_where_things_stand() -> None:
    text = "\n".join(screen(sample_journal(), 100, 30))
    for part in (
        "inference", "event log", "lake", "datasets", "trainer", "registry", "rollout",
        "02:46 of 07:00", "seed 1", "step 31 of 51", "p-000001", "a wrong thumb",
        "p-000001 passed the gate", "dataset 2 is built",
    ):  # fmt: skip
        assert part in text


def test_a_small_terminal_leaves_the_ring_out_and_keeps_the_story() -> None:
    text = "\n".join(screen(sample_journal(), 60, 18))
    assert "event log" not in text
    assert "the trainer begins a cycle" in text


def test_markup_in_what_users_say_is_shown_as_it_is() -> None:
    journal = sample_journal()
    last = journal.exchanges[-1]
    journal.latest.append(
        type(last)(170, "concierge", "facts", "[red]what?[/red] [/]", "[link=x]", "wrong", "p-000001", False, False)
    )
    text = "\n".join(screen(journal, 100, 30))
    assert "[red]what?[/red] [/]" in text
    assert "[link=x]" in text


def test_the_status_line_says_what_is_waited_for() -> None:
    line = status(sample_journal())
    assert line.startswith("waiting for the second policy; 238 votes")
    assert "step 31 of 51" in line


async def test_without_a_terminal_every_event_is_one_line() -> None:
    journal = Journal("concierge", 1, 420, 400)
    out = io.StringIO()
    console = Console(file=out, width=40, force_terminal=False)
    async with shown(journal, lambda: 3.0, console, plain=True):
        journal.enter(1, "the ring starts")
        await asyncio.sleep(0)
        journal.tell(2, "p-000001 was refused: [recall] fell by 5 points, which is more than it may by far")
    assert out.getvalue().splitlines() == [
        "[    1 s] the ring starts",
        "[    2 s] p-000001 was refused: [recall] fell by 5 points, which is more than it may by far",
    ]


def test_a_training_that_nobody_looks_at_any_more_shows_no_bar() -> None:
    journal = sample_journal()
    assert "step 31 of 51" in drawn(journal)
    journal.leave_ring()
    assert "step 31 of 51" not in drawn(journal)
    assert "31/51" not in drawn(journal)


def drawn(journal: Journal) -> str:
    console = Console(file=io.StringIO(), width=100, height=30, record=True)
    console.print(picture(journal, 100, 100, 30))
    return console.export_text()
