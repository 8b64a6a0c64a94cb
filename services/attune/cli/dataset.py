"""`attune dataset`: build one now, list them, look at one, compare two, check that they are whole."""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attune.cli.options import ConfigOption, DataOption, read_settings
from attune.cli.progress import progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from attune.aggregator.datasets import Bars, Difference, Portrait
    from attune.lake.dataset import Dataset, Manifest

dataset_app = typer.Typer(help="Datasets: build, list, show, diff, verify.", no_args_is_help=True)

TenantOption = Annotated[str, typer.Option("--tenant", metavar="NAME", help="Whose data.")]
DatasetArgument = Annotated[str, typer.Argument(metavar="DATASET", help="Its id, or as much as tells it from others.")]

_BAR_CELLS = 40
_PIPE_COLUMNS = 120


class Engine(StrEnum):
    """What runs the SQL."""

    DUCKDB = "duckdb"
    SPARK = "spark"


@dataset_app.command("build")
def build(
    *,
    persona: Annotated[
        str, typer.Option("--persona", metavar="NAME", help="Whose; the default persona's without it.")
    ] = "",
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", metavar="NAME", help="Again for more; without it the settings'.")
    ] = None,
    engine: Annotated[Engine, typer.Option("--engine", help="DuckDB here, or Spark.")] = Engine.DUCKDB,
    tenant: TenantOption = "default",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Build a persona's datasets now, of what the lake holds. The trainer takes up a new one of thumbs by itself."""
    from attune.aggregator.datasets import build_now

    settings = read_settings(config, data)
    console = _console(stderr=True)
    with console.status("building"):
        made = build_now(
            settings, tenant, persona, recipe or (), engine=engine.value, now_unix_ms=time.time_ns() // 1_000_000
        )
    for dataset, is_new in made:
        manifest = dataset.manifest
        print(
            f"{manifest.dataset_id} {manifest.recipe.name} of {manifest.persona}: {_counted(manifest)}"
            + ("" if is_new else "; it was there already")
        )


@dataset_app.command("list")
def list_them(
    *,
    persona: Annotated[str | None, typer.Option("--persona", metavar="NAME", help="Only this persona's.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", metavar="NAME", help="Only by this recipe.")] = None,
    tenant: TenantOption = "default",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """List datasets, the newest first."""
    from attune.lake.dataset import list_datasets

    folder = read_settings(config, data).data / "datasets"
    numbers = ("train", "held out", "left out", "KiB")
    table = _table("dataset", "recipe", "persona", "made (UTC)", *numbers, right=numbers)
    found = list_datasets(folder, tenant, persona, recipe)
    for dataset in reversed(found):
        manifest = dataset.manifest
        counts = [f"{sum(manifest.counts[part].values()):,}" for part in ("train", "heldout", "left_out")]
        size = sum(file.bytes for file in manifest.files)
        table.add_row(
            manifest.dataset_id,
            manifest.recipe.name,
            manifest.persona,
            _time(manifest.created_unix_ms),
            *counts,
            f"{size / 1024:,.0f}",
        )
    if found:
        _console().print(table)
    else:
        print(f"no datasets in {folder}")


@dataset_app.command("show")
def show(
    name: DatasetArgument,
    *,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with plots too.")] = None,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Show what a dataset was made by, and draw its balance, people, ages, persona versions and weights."""
    from attune.aggregator.datasets import portray

    portrait = portray(_find(name, config, data))
    console = _console()
    console.print(_about(portrait))
    for bars in portrait.bars:
        if bars.counts:
            console.print(_drawn(bars))
    if html is not None:
        from attune.cli.dataset_page import page

        html.write_text(page(portrait, _facts(portrait)), encoding="utf-8")
        print(f"{html} is written")


@dataset_app.command("diff")
def diff(first: DatasetArgument, second: DatasetArgument, config: ConfigOption = None, data: DataOption = None) -> None:
    """Say what the second dataset has that the first has not, and the other way round."""
    from attune.aggregator.datasets import difference

    found = difference(_find(first, config, data), _find(second, config, data))
    for line in _said(found):
        print(line)


@dataset_app.command("verify")
def verify(
    name: Annotated[str, typer.Argument(metavar="[DATASET]", help="Its id; without it all.")] = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Check every byte against the manifest, and that the rows make the id. Exit status 1 when one is damaged."""
    from attune.aggregator.datasets import find_dataset
    from attune.aggregator.datasets import verify as check
    from attune.errors import AttuneError, NotFound

    folder = read_settings(config, data).data / "datasets"
    names = [name] if name else sorted(path.parent.name for path in folder.glob("d-*/manifest.json"))
    if not names:
        raise NotFound(f"no datasets in {folder}")
    damaged = 0
    with progress("datasets", len(names)) as shown:
        for done, each in enumerate(names, 1):
            try:
                dataset = find_dataset(folder, each)
                check(dataset)
                print(f"{dataset.manifest.dataset_id}: whole")
            except NotFound:
                raise
            except AttuneError as error:
                damaged += 1
                print(f"{each}: {error.message}")
            shown(done)
    if damaged:
        raise typer.Exit(1)


def _find(name: str, config: Path | None, data: Path | None) -> "Dataset":
    from attune.aggregator.datasets import find_dataset

    return find_dataset(read_settings(config, data).data / "datasets", name)


def _facts(portrait: "Portrait") -> dict[str, str]:
    manifest = portrait.manifest
    return {
        "recipe": manifest.recipe.name,
        "tenant": manifest.tenant,
        "persona": manifest.persona,
        "made (UTC)": _time(manifest.created_unix_ms),
        "examples": _counted(manifest),
        "people": f"{portrait.people:,}; one has a part in at most {portrait.most_by_one:,} examples",
        "effective examples": f"{portrait.effective:,.1f} of {portrait.examples:,}, by their weights",
        "settings": ", ".join(f"{name} = {value}" for name, value in sorted(manifest.settings.items())),
        "table versions": ", ".join(f"{name} {version}" for name, version in sorted(manifest.table_versions.items())),
        "files": f"{len(manifest.files)}, {sum(file.bytes for file in manifest.files):,} bytes",
    }


def _about(portrait: "Portrait") -> "Table":
    from attune.cli.policy import plain

    table = _table(portrait.manifest.dataset_id, "")
    for name, value in _facts(portrait).items():
        table.add_row(name, plain(value))
    return table


def _drawn(bars: "Bars") -> "Table":
    """A bar for each class, the longest one as wide as there is room."""
    from attune.cli.policy import plain

    table = _table(bars.title, "", bars.unit, right=(bars.unit,))
    most = max(bars.counts.values()) or 1
    for name, count in bars.counts.items():
        eighths = round(count / most * _BAR_CELLS * 8)
        bar = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
        table.add_row(plain(name), f"[cyan]{bar}[/]", f"{count:,}")
    return table


def _said(found: "Difference") -> list[str]:
    lines = [
        f"{name}: {'changed' if name.endswith('text') else f'{old} -> {new}'}"
        for name, (old, new) in found.made_by.items()
    ]
    lines.append(
        f"{found.kept:,} examples in both, {found.removed:,} only in the first, {found.added:,} only in the second"
    )
    for count, what in (
        (found.relabelled, "have another label"),
        (found.reweighted, "another weight"),
        (found.moved, "went to the other split"),
    ):
        if count:
            lines.append(f"of those in both {count:,} {what}")
    return lines


def _counted(manifest: "Manifest") -> str:
    parts = []
    for split, name in (("train", "to train on"), ("heldout", "held out")):
        counts = manifest.counts[split]
        labels = ", ".join(f"{count:,} {label}" for label, count in counts.items() if count)
        parts.append(f"{sum(counts.values()):,} {name}" + (f" ({labels})" if labels else ""))
    return ", ".join([*parts, f"{sum(manifest.counts['left_out'].values()):,} left out"])


def _time(unix_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(unix_ms / 1000))


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(highlight=False, stderr=stderr, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def _table(*columns: str, right: "Sequence[str]" = ()) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table
