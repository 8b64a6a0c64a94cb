"""`attune lineage`: what something was made of, and what it went into."""

from typing import TYPE_CHECKING, Annotated

import typer

from attune.cli.options import ConfigOption, DataOption, ServerOption, read_settings
from attune.cli.screen import local_time, open_console, plain

if TYPE_CHECKING:
    from rich.tree import Tree

    from attune.v1 import dataset_pb2

_DEADLINE_SECONDS = 60.0
_WAYS = {"made_of": "made of", "went_into": "went into"}
_COUNTED = 10_000


def lineage(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="Of a response, a feedback, an example, a dataset or a policy.")
    ],
    *,
    to: Annotated[str, typer.Option("--to", metavar="ID", help="Only the way from the one to the other.")] = "",
    depth: Annotated[int, typer.Option("--depth", min=1, max=12, help="How many steps each way.")] = 6,
    width: Annotated[int, typer.Option("--width", min=1, max=50, help="How many neighbours of each kind.")] = 5,
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Show what something was made of and what it went into: responses, feedback, examples, datasets, policies."""
    from attune.cli.service import asked
    from attune.v1 import dataset_pb2, dataset_pb2_grpc

    request = dataset_pb2.GetLineageRequest(id=name, depth=depth, width=width, to_id=to)
    with asked(read_settings(config, data), "aggregator", server, dataset_pb2_grpc.LineageServiceStub) as stub:
        node = stub.GetLineage(request, timeout=_DEADLINE_SECONDS).node
    open_console().print(tree_of(node))


def tree_of(root: "dataset_pb2.LineageNode") -> "Tree":
    """The root with a branch each way."""
    from rich.tree import Tree

    tree = Tree(_label(root), guide_style="dim")
    for way, words in _WAYS.items():
        if getattr(root, way) or getattr(root, f"{way}_left_out"):
            _grow(tree.add(f"[italic]{words}[/]"), root, way)
    return tree


def _grow(tree: "Tree", node: "dataset_pb2.LineageNode", way: str) -> None:
    for child in getattr(node, way):
        _grow(tree.add(_label(child)), child, way)
    if left_out := getattr(node, f"{way}_left_out"):
        tree.add(f"[dim]and {left_out:,}{' or more' * (left_out >= _COUNTED)} not shown[/]")


def _label(node: "dataset_pb2.LineageNode") -> str:
    from attune.v1 import dataset_pb2

    kind = dataset_pb2.LineageNode.Kind.Name(node.kind).removeprefix("KIND_").lower()
    when = f" · {local_time(node.created_unix_ms)}"
    more = " · see above" if node.repeated else ""
    return f"{kind} [bold]{plain(node.id)}[/] [dim]{plain(node.detail)}{when * bool(node.created_unix_ms)}{more}[/]"
