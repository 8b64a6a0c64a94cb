"""`attune feedback import`: answers from elsewhere, and what was said of them."""

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attune.cli.options import ConfigOption, DataOption, ServerOption, read_settings

if TYPE_CHECKING:
    from attune.client import Client
    from attune.client.imports import Line
    from attune.v1 import feedback_pb2

feedback_app = typer.Typer(help="Feedback in bulk: import.", no_args_is_help=True)

_AT_ONCE = 500
_REASONS_SHOWN = 50


class Format(StrEnum):
    """Shapes of files; docs/feedback-files.md."""

    ATTUNE = "attune"
    HH = "hh"
    ULTRAFEEDBACK = "ultrafeedback"
    OPENAI_STORED = "openai-stored"


@feedback_app.callback()
def feedback() -> None:
    """Feedback in bulk."""


@feedback_app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines.", exists=True, dir_okay=False)],
    *,
    form: Annotated[Format, typer.Option("--format", help="What a line holds.")] = Format.ATTUNE,
    persona: Annotated[str, typer.Option(metavar="NAME", help="Whose answers; the server's default without it.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first line that cannot be taken.")] = False,
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Import answers that attune did not generate, with rankings, ratings and thumbs. Again: nothing is added.

    A line that cannot be taken is reported by its number with the reason, and the rest goes on.
    """
    from attune.client.imports import read_lines
    from attune.client.place import place_of

    where = place_of(read_settings(config, data), "inference", server)
    count: Counter[str] = Counter()
    reasons: list[str] = []
    with (
        file.open("rb") as lines,
        where.client() as client,
    ):
        read = read_lines(lines, form.value, name=file.stem, persona=persona)
        for batch in _batches(read):
            for line, reason in _take(client, batch, count):
                count["left out"] += 1
                reasons.append(f"line {line.number}: {reason}")
                if strict:
                    break
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
