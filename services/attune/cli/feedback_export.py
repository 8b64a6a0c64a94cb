"""`attune feedback export`: requests, answers and what was said of them, out of the lake."""

import contextlib
import os
import secrets
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from attune.cli.feedback_format import Format
from attune.cli.options import ConfigOption, DataOption, ServerOption, read_settings
from attune.errors import NotFound

if TYPE_CHECKING:
    from attune.client.place import Place
    from attune.v1 import dataset_pb2

_DEADLINE_SECONDS = 24 * 3600
_SCREEN = Path("-")
# What a shape has no place for is counted together; the server's words are sentences here.
_REASONS = {
    "not_stored": "answers whose storing was denied",
    "not_consented": "answers that nothing may be learned from (--not-for-training has them)",
    "aborted": "answers that are not whole",
    "several_requests": "rankings over answers to several requests",
    "conversation": "outcomes of whole conversations",
}


def export_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write; - for the screen or a pipe.")],
    *,
    form: Annotated[Format, typer.Option("--format", help="What a line holds.")] = Format.ATTUNE,
    persona: Annotated[str, typer.Option(metavar="NAME", help="Only this persona's; without it everybody's.")] = "",
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Only what was answered at or after this time, UTC."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what nobody said anything of.")] = False,
    not_for_training: Annotated[
        bool, typer.Option("--not-for-training", help="Also what policies may not learn from.")
    ] = False,
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Export answers and what was said of them, one JSON object a line. FILE is replaced once all is there.

    Asks the aggregator, with a key of the role operate, and gets what is its tenant's.
    """
    from attune.client.place import place_of
    from attune.v1 import dataset_pb2

    request = dataset_pb2.ExportRecordsRequest(
        persona=persona,
        since_unix_ms=0 if since is None else int(since.replace(tzinfo=UTC).timestamp() * 1000),
        without_feedback=everything or form is Format.OPENAI_STORED,
        not_for_training=not_for_training,
    )
    where = place_of(read_settings(config, data), "aggregator", server)
    left_out: Counter[str] = Counter()
    lines = 0
    with _written(file) as out:
        for line in _lines(where, request, form, left_out):
            out.write(f"{line}\n")
            lines += 1
    for reason, count in sorted(left_out.items()):
        sys.stderr.write(f"left out: {count} {_REASONS.get(reason, reason)}\n")
    sys.stderr.write(f"{lines} lines are in {'the output' if file == _SCREEN else file}\n")


def _lines(
    where: "Place", request: "dataset_pb2.ExportRecordsRequest", form: Format, left_out: "Counter[str]"
) -> Iterator[str]:
    """Raises Unavailable for an export that broke off."""
    from attune.cli.progress import progress
    from attune.client.exports import lines_of
    from attune.errors import InvalidInput, Unavailable

    parts = _parts(where, request)
    first = next(parts, None)
    with progress("exporting", first.start.records if first else 0) as done:
        for number, part in enumerate(parts, 1):
            if part.HasField("summary"):
                left_out.update(part.summary.left_out)
                return
            try:
                yield from lines_of(part.record, form)
            except InvalidInput as error:
                left_out[f"records: {error.message}"] += 1
            done(number)
    raise Unavailable(f"the export from {where.address} broke off")


def _parts(
    where: "Place", request: "dataset_pb2.ExportRecordsRequest"
) -> "Iterator[dataset_pb2.ExportRecordsResponse]":
    import grpc

    from attune.client.authorized import Authorized
    from attune.client.errors import error_of
    from attune.v1 import dataset_pb2_grpc

    with where.channel() as channel:
        stub = Authorized(dataset_pb2_grpc.ExportServiceStub(channel), where.api_key)
        try:
            yield from stub.ExportRecords(request, timeout=_DEADLINE_SECONDS)
        except grpc.RpcError as failure:
            raise error_of(failure, where.address) from None


@contextlib.contextmanager
def _written(file: Path) -> Iterator[TextIO]:
    """The whole file or none."""
    if file == _SCREEN:
        yield sys.stdout
        return
    if not file.parent.is_dir():
        raise NotFound(f"{file.parent} is no folder")
    draft = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with draft.open("x", encoding="utf-8") as out:
            yield out
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
