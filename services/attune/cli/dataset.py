"""`attune dataset`: build one now, list them, look at one, compare two, check that they are whole."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attune.cli.options import ConfigOption, DataOption, ServerOption, read_settings
from attune.cli.progress import progress
from attune.cli.screen import local_time, open_console, open_table, plain

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.table import Table

    from attune.client.authorized import Authorized
    from attune.v1 import dataset_pb2

dataset_app = typer.Typer(help="Datasets: build, list, show, diff, verify.", no_args_is_help=True)

DatasetArgument = Annotated[str, typer.Argument(metavar="DATASET", help="Its id, or as much as tells it from others.")]

_DEADLINE_SECONDS = 60.0
_LONG_SECONDS = 24 * 3600.0
_BAR_CELLS = 40


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
    engine: Annotated[
        Engine, typer.Option("--engine", help="DuckDB, or Spark where the aggregator has it.")
    ] = Engine.DUCKDB,
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Build a persona's datasets now, of what the lake holds. The trainer takes up a new one of thumbs by itself."""
    from attune.v1 import dataset_pb2

    number = dataset_pb2.BuildDatasetsRequest.Engine.Value(f"ENGINE_{engine.name}")
    request = dataset_pb2.BuildDatasetsRequest(persona=persona, recipes=recipe or (), engine=number)
    with _service(config, data, server) as stub:
        parts = stub.BuildDatasets(request, timeout=_LONG_SECONDS)
        most = next(parts).datasets
        with progress("building", most if most > 1 else None) as shown:
            for made, part in enumerate(parts, 1):
                dataset = part.built.dataset
                print(
                    f"{dataset.dataset_id} {dataset.recipe} of {dataset.persona}: {_counted(dataset)}"
                    + ("" if part.built.is_new else "; it was there already")
                )
                shown(made)


@dataset_app.command("list")
def list_them(
    *,
    persona: Annotated[str, typer.Option("--persona", metavar="NAME", help="Only this persona's.")] = "",
    recipe: Annotated[str, typer.Option("--recipe", metavar="NAME", help="Only by this recipe.")] = "",
    most: Annotated[int, typer.Option("--most", min=1, max=1000, help="How many, the newest ones.")] = 100,
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """List datasets, the newest first."""
    from attune.v1 import dataset_pb2

    request = dataset_pb2.ListDatasetsRequest(persona=persona, recipe=recipe, limit=most)
    with _service(config, data, server) as stub:
        found = stub.ListDatasets(request, timeout=_DEADLINE_SECONDS)
    if not found.datasets:
        print("no datasets")
        return
    numbers = ("train", "held out", "left out", "KiB")
    table = open_table("dataset", "recipe", "persona", "made", *numbers, right=numbers)
    for dataset in found.datasets:
        table.add_row(
            plain(dataset.dataset_id),
            plain(dataset.recipe),
            plain(dataset.persona),
            local_time(dataset.created_unix_ms),
            *(f"{sum(counts.values()):,}" for counts in (dataset.train, dataset.heldout, dataset.left_out)),
            f"{dataset.bytes / 1024:,.0f}",
        )
    open_console().print(table)
    if found.older:
        print(f"and {found.older:,} older ones (--most)")


@dataset_app.command("show")
def show(
    name: DatasetArgument,
    *,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with plots too.")] = None,
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Show what a dataset was made by, and draw its balance, people, ages, persona versions and weights."""
    from attune.v1 import dataset_pb2

    with _service(config, data, server) as stub:
        request = dataset_pb2.GetDatasetRequest(dataset_id=name)
        with progress("reading", None):
            portrait = stub.GetDataset(request, timeout=_LONG_SECONDS)
    console = open_console()
    console.print(_about(portrait))
    for bars in portrait.bars:
        if bars.bars:
            console.print(_drawn(bars))
    if html is not None:
        from attune.cli.dataset_page import page

        html.write_text(page(portrait, _facts(portrait)), encoding="utf-8")
        print(f"{html} is written")


@dataset_app.command("diff")
def diff(
    first: DatasetArgument,
    second: DatasetArgument,
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Say what the second dataset has that the first has not, and the other way round."""
    from attune.v1 import dataset_pb2

    request = dataset_pb2.CompareDatasetsRequest(first_id=first, second_id=second)
    with _service(config, data, server) as stub, progress("comparing", None):
        found = stub.CompareDatasets(request, timeout=_LONG_SECONDS)
    for line in _said(found):
        open_console().print(plain(line), soft_wrap=True)


@dataset_app.command("verify")
def verify(
    name: Annotated[str, typer.Argument(metavar="[DATASET]", help="Its id; without it all.")] = "",
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Check every byte against the manifest, and that the rows make the id. Exit status 1 when one is damaged."""
    from attune.v1 import dataset_pb2

    damaged = 0
    with _service(config, data, server) as stub:
        parts = stub.VerifyDatasets(dataset_pb2.VerifyDatasetsRequest(dataset_id=name), timeout=_LONG_SECONDS)
        most = next(parts).datasets
        with progress("datasets", most) as shown:
            for done, part in enumerate(parts, 1):
                checked = part.checked
                print(f"{checked.dataset_id}: {checked.damage or 'whole'}")
                damaged += bool(checked.damage)
                shown(done)
    if not most:
        print("no datasets")
    if damaged:
        raise typer.Exit(1)


@dataset_app.command("explain")
def explain(
    name: Annotated[str, typer.Argument(metavar="EXAMPLE", help="Its id, or that of a signal or a response in it.")],
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Say why an example is in the newest datasets, or out, and why it weighs what it weighs."""
    from attune.v1 import dataset_pb2

    with _service(config, data, server) as stub:
        found = stub.ExplainExample(dataset_pb2.ExplainExampleRequest(id=name), timeout=_LONG_SECONDS)
    for line in _explained(found):
        open_console().print(plain(line), soft_wrap=True)


def _explained(found: "dataset_pb2.ExplainExampleResponse") -> list[str]:
    lines = []
    for each in found.examples:
        side = "trained on" if each.split == "train" else "held out, for somebody who has a part in it is"
        lines.append(
            f"{each.example_id} is in {each.dataset_id} ({each.recipe} of {each.persona}): {each.label}, {side}"
        )
        lines.append(f"  {each.given_weight:<9.4g} by the recipe")
        lines += [f"  x {step.factor:<7.4g} {step.reason}" for step in each.steps]
        lines.append(f"  = {each.weight:<7.4g} its weight")
    lines += [f"{each.feedback_id} is not in {each.recipe} of {each.persona}: {each.reason}" for each in found.missing]
    return lines


def _service(config: Path | None, data: Path | None, server: str) -> "AbstractContextManager[Authorized]":
    from attune.cli.service import asked
    from attune.v1 import dataset_pb2_grpc

    return asked(read_settings(config, data), "aggregator", server, dataset_pb2_grpc.DatasetServiceStub)


def _facts(portrait: "dataset_pb2.GetDatasetResponse") -> dict[str, str]:
    dataset, settings = portrait.dataset, json.loads(portrait.settings_json)
    examples = sum(dataset.train.values()) + sum(dataset.heldout.values())
    facts = {
        "recipe": dataset.recipe,
        "persona": dataset.persona,
        "made": local_time(dataset.created_unix_ms, zone=True),
        "examples": _counted(dataset),
        "people": f"{portrait.people:,}; one has a part in at most {portrait.most_by_one:,} examples",
        "effective examples": f"{portrait.effective_examples:,.1f} of {examples:,}, by their weights",
        "weighed otherwise": ", ".join(f"{count:,} {why}" for why, count in sorted(dataset.weighed.items()) if count),
        "settings": ", ".join(f"{name} = {value}" for name, value in sorted(settings.items())),
        "table versions": ", ".join(f"{name} {version}" for name, version in sorted(portrait.table_versions.items())),
        "files": f"{dataset.files}, {dataset.bytes:,} bytes",
    }
    return {name: value for name, value in facts.items() if value}


def _about(portrait: "dataset_pb2.GetDatasetResponse") -> "Table":
    table = open_table(plain(portrait.dataset.dataset_id), "")
    for name, value in _facts(portrait).items():
        table.add_row(name, plain(value))
    return table


def _drawn(bars: "dataset_pb2.Bars") -> "Table":
    """A bar for each class, the longest one as wide as there is room."""
    table = open_table(bars.title, "", bars.unit, right=(bars.unit,))
    most = max(bar.count for bar in bars.bars) or 1
    for each in bars.bars:
        eighths = round(each.count / most * _BAR_CELLS * 8)
        bar = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
        table.add_row(plain(each.name), f"[cyan]{bar}[/]", f"{each.count:,}")
    return table


def _said(found: "dataset_pb2.CompareDatasetsResponse") -> list[str]:
    lines = [
        f"{one.name}: {'changed' if one.name.endswith('text') else f'{one.before} -> {one.after}'}"
        for one in found.made_by
    ]
    only = f"{found.only_first:,} only in the first, {found.only_second:,} only in the second"
    lines.append(f"{found.kept:,} examples in both, {only}")
    for count, what in (
        (found.relabelled, "have another label"),
        (found.reweighted, "another weight"),
        (found.moved, "went to the other split"),
    ):
        if count:
            lines.append(f"of those in both {count:,} {what}")
    return lines


def _counted(dataset: "dataset_pb2.Dataset") -> str:
    parts = []
    for counts, name in ((dataset.train, "to train on"), (dataset.heldout, "held out")):
        labels = ", ".join(f"{count:,} {label}" for label, count in sorted(counts.items()) if count)
        parts.append(f"{sum(counts.values()):,} {name}" + (f" ({labels})" if labels else ""))
    return ", ".join([*parts, f"{sum(dataset.left_out.values()):,} left out"])
