"""`attune lake`: what the lake holds, and keeping it in shape, beside an aggregator that runs.

`stats` and `optimize` ask the aggregator; `check` and `repair` work on the tables themselves, for with damaged ones an
aggregator may not run.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attune.cli.options import ConfigOption, DataOption, ServerOption, read_settings
from attune.cli.progress import progress
from attune.cli.screen import local_time, open_console, open_table, plain
from attune.errors import DataLoss, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from attune.client.authorized import Authorized
    from attune.lake.damage import DamagedFile
    from attune.lake.delta import LakeTable
    from attune.lake.lake import Lake
    from attune.v1 import dataset_pb2

lake_app = typer.Typer(help="The tables: what they hold, merging, damage.", no_args_is_help=True)


_STEPS = 1000  # of a bar
_TABLES = 3
_DEADLINE_SECONDS = 60.0
_LONG_SECONDS = 24 * 3600.0


@lake_app.command("stats")
def stats(server: ServerOption = "", config: ConfigOption = None, data: DataOption = None) -> None:
    """Say what the tables hold, from their logs alone."""
    from attune.v1 import dataset_pb2

    with _service(config, data, server) as stub:
        told = stub.GetLakeStats(dataset_pb2.GetLakeStatsRequest(), timeout=_DEADLINE_SECONDS)
    numbers, times = ("rows", "size", "files", "small", "version", "days"), ("came in", "changed")
    table = open_table("table", *numbers, *times, right=numbers, whole=(*numbers, *times))
    for each in told.tables:
        table.add_row(
            plain(each.name),
            f"{each.rows:,}",
            _size(each.bytes),
            f"{each.files:,}",
            f"{each.small_files:,}",
            str(each.version),
            str(each.days or "–"),
            _days(each),
            local_time(each.changed_unix_ms) or "–",
        )
    console = open_console()
    console.print(f"[bold]{plain(told.place)}[/]")
    console.print(table)


@lake_app.command("optimize")
def optimize(server: ServerOption = "", config: ConfigOption = None, data: DataOption = None) -> None:
    """Merge small files, and delete what the tables' history no longer needs (lake.history_hours).

    The aggregator does the same every lake.optimize_minutes. Readers and writers go on meanwhile.
    """
    from attune.v1 import dataset_pb2

    with _service(config, data, server) as stub:
        parts = stub.OptimizeLake(dataset_pb2.OptimizeLakeRequest(), timeout=_LONG_SECONDS)
        tables = 0
        with progress("tables", _STEPS) as show:
            for part in parts:
                if part.HasField("step"):
                    show(_STEPS * tables // _TABLES + _STEPS * part.step.done // max(part.step.of, 1) // _TABLES)
                    continue
                tables += 1
                done = part.optimized
                print(
                    f"{done.table}: {done.merged_files} files merged into {done.into_files}, "
                    f"{done.deleted_files} deleted"
                )


@lake_app.command("check")
def check(config: ConfigOption = None, data: DataOption = None) -> None:
    """Read every file and compare it with the checksum it was written with; exit status 1 when one is damaged."""
    damaged = {table.name: _damage(table) for table in _lake(config, data).tables}
    for name, files in damaged.items():
        print(f"{name}: {_said(files) if files else 'as written'}")
    if any(damaged.values()):
        raise DataLoss(
            "the lake is damaged: put the files back from a backup, or give up their rows with `attune lake repair`"
        )


@lake_app.command("repair")
def repair(
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Leave damaged files out of the tables, so that the rest can be read. Their rows are lost to the lake.

    Local files are kept in the table's folder `_damaged`.
    """
    from attune.lake.damage import leave_out_damage

    tables = _lake(config, data).tables
    damaged = {table.name: _damage(table) for table in tables}
    if not any(damaged.values()):
        print("nothing is damaged")
        return
    for name, files in damaged.items():
        if files:
            print(f"{name}: {_said(files)}")
    if not yes and not (sys.stdin.isatty() and typer.confirm("Give up these rows?")):
        raise typer.Exit(1)
    for table in tables:
        if damaged[table.name]:
            left_out = leave_out_damage(table)
            print(f"{table.name}: {len(left_out)} files left out")


def _service(config: "Path | None", data: "Path | None", server: str) -> "AbstractContextManager[Authorized]":
    from attune.cli.service import asked
    from attune.v1 import dataset_pb2_grpc

    return asked(read_settings(config, data), "aggregator", server, dataset_pb2_grpc.LakeServiceStub)


def _lake(config: "Path | None", data: "Path | None") -> "Lake":
    """Raises NotFound where none was made: looking at a lake does not make one."""
    from attune.lake.delta import open_table
    from attune.lake.lake import Lake
    from attune.lake.place import lake_place
    from attune.lake.tables import SCHEMAS

    settings = read_settings(config, data)
    place = lake_place(settings.lake, settings.data)
    if all(open_table(place / name) is None for name in SCHEMAS):
        raise NotFound(f"no lake in {place} yet")
    return Lake(place, history_hours=settings.lake.history_hours)


def _damage(table: "LakeTable") -> "list[DamagedFile]":
    from attune.lake.damage import find_damage

    with progress(table.name, _STEPS) as show:
        return find_damage(table.place, table.handle, _shown(show))


def _shown(show: "Callable[[int], None]") -> "Callable[[int, int], None]":
    return lambda done, of: show(_STEPS * done // max(of, 1))


def _said(files: "list[DamagedFile]") -> str:
    lines = [f"{len(files)} damaged, {sum(file.rows for file in files):,} rows"]
    return "\n  ".join([*lines, *(f"{file.name}: {file.reason}, {file.rows:,} rows" for file in files)])


def _days(table: "dataset_pb2.TableStats") -> str:
    return " to ".join(dict.fromkeys((table.first_day, table.last_day))) or "–"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
