"""What commands show: tables, times and others' texts, the same in a terminal and in a pipe."""

import sys
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPE_COLUMNS = 160


def open_console() -> "Console":
    """As wide as the terminal; in a pipe wide enough for what stands in one line."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def show_parts(*parts: object) -> None:
    """One after the other; a sentence is not folded."""
    console = open_console()
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def open_table(*columns: str, title: str = "", right: Collection[str] = (), whole: Collection[str] = ()) -> "Table":
    """Without rows yet. Numbers stand to the right; what is to be copied stays whole, the rest folds."""
    from rich.table import Table

    table = Table(
        title=title or None,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        show_header=any(columns),
    )
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in whole
        )
    return table


def local_time(unix_ms: int | None, *, zone: bool = False) -> str:
    """Nothing for none and for 0; with the zone where it may be read elsewhere."""
    form = "%Y-%m-%d %H:%M:%S %Z" if zone else "%Y-%m-%d %H:%M:%S"
    return time.strftime(form, time.localtime(unix_ms / 1000)) if unix_ms else ""


def plain(text: str, keep: str = "") -> str:
    """Text of others', safe to print: no markup, and no control characters but those in `keep`."""
    from rich.markup import escape

    return escape("".join(letter if letter.isprintable() or letter in keep else "\ufffd" for letter in text))
