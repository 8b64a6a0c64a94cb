"""`attune feedback import`: answers from elsewhere, and what was said of them."""

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attune.cli.feedback_format import Format
from attune.cli.options import ConfigOption, DataOption, ServerOption, read_settings

if TYPE_CHECKING:
    from attune.client import Client
    from attune.client.imports import Line
    from attune.v1 import feedback_pb2

_AT_ONCE = 500
_REASONS_SHOWN = 50


def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines.", exists=True, dir_okay=False)],
    *,
    form: Annotated[Format, typer.Option("--format", help="What a line holds.")] = Format.ATTUNE,
    persona: Annotated[str, typer.Option(metavar="NAME", help="Whose answers; the server's default without it.")] = "",
    strict: Annotated[
        bool, typer.Option("--strict", help="Import nothing when a line cannot be read, and stop where one is refused.")
    ] = False,
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Import answers that attune did not generate, and what was said of them. Again: nothing is added.

    A line that cannot be taken is reported by its number with the reason, and the rest goes on.
    """
    from attune.cli.progress import progress
    from attune.client.imports import read_lines
    from attune.client.place import place_of
    from attune.errors import InvalidInput

    where = place_of(read_settings(config, data), "inference", server)
    count: Counter[str] = Counter()
    reasons: list[str] = []
    with file.open("rb") as lines, where.client() as client, progress("importing", file.stat().st_size) as done:
        if strict:
            if not lines.seekable():
                raise InvalidInput(f"--strict reads twice, and {file} can be read once only")
            if bad := _first_bad(read_lines(lines, form.value, name=file.stem, persona=persona)):
                raise InvalidInput(f"line {bad.number}: {bad.reason}; nothing was imported")
            lines.seek(0)
        for batch in _batches(read_lines(lines, form.value, name=file.stem, persona=persona)):
            for line, reason in _take(client, batch, count):
                count["left out"] += 1
                reasons.append(f"line {line.number}: {reason}")
            done(lines.tell() if lines.seekable() else 0)
            if strict and reasons:
                break
    for reason in reasons[:_REASONS_SHOWN]:
        sys.stderr.write(f"{reason}\n")
    if len(reasons) > _REASONS_SHOWN:
        sys.stderr.write(f"and {len(reasons) - _REASONS_SHOWN} more\n")
    sys.stdout.write(
        f"{count['lines']} lines: {count['imported']} imported with {count['answers']} answers and "
        f"{count['feedback']} feedbacks, {count['duplicate']} were there already, {count['left out']} left out\n"
    )
    if reasons:
        raise typer.Exit(1)


def _first_bad(lines: "Iterator[Line]") -> "Line | None":
    return next((line for line in lines if line.record is None), None)


def _batches(lines: "Iterator[Line]") -> "Iterator[list[Line]]":
    while batch := list(itertools.islice(lines, _AT_ONCE)):
        yield batch


def _take(client: "Client", batch: "Sequence[Line]", count: "Counter[str]") -> "Iterator[tuple[Line, str]]":
    """Imports a batch and what was said of it; gives the lines that were left out, and why."""
    count["lines"] += len(batch)
    yield from ((line, line.reason) for line in batch if line.record is None)
    good = [(line, line.record) for line in batch if line.record is not None]
    said: list[tuple[Line, feedback_pb2.SubmitFeedbackRequest]] = []
    results = list(client.import_all(record.request for _, record in good))
    for (line, record), result in zip(good, results, strict=True):
        if result.HasField("refused"):
            yield line, result.refused.message
            continue
        count["duplicate" if result.accepted.duplicate else "imported"] += 1
        count["answers"] += 0 if result.accepted.duplicate else len(result.accepted.response_ids)
        said += [(line, request) for request in record.feedback(result.accepted.response_ids)]
    for (line, _), told in zip(said, client.submit_all(request for _, request in said), strict=True):
        if told.HasField("refused"):
            yield line, f"its feedback: {told.refused.message}"
        elif not told.accepted.duplicate:
            count["feedback"] += 1
