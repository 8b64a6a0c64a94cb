"""`attune log`: events as they come."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from attune.cli.options import ConfigOption, DataOption, ServerOption, read_settings
from attune.cli.screen import plain

if TYPE_CHECKING:
    from attune.v1 import dataset_pb2

log_app = typer.Typer(help="The event log: look on while it grows.", no_args_is_help=True)


@log_app.callback()
def log() -> None:
    """The event log: look on while it grows."""


@log_app.command("tail")
def tail(
    *,
    responses: Annotated[bool, typer.Option("--responses", help="Only responses.")] = False,
    feedback: Annotated[bool, typer.Option("--feedback", help="Only feedback.")] = False,
    persona: Annotated[str, typer.Option("--persona", metavar="NAME", help="Only this persona's.")] = "",
    text: Annotated[bool, typer.Option("--text", help="Also what was said; personal data masked.")] = False,
    most: Annotated[int, typer.Option("--most", min=0, help="End after so many; 0 goes on until Ctrl-C.")] = 0,
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Show events as they come into the event log, without any text of anybody's, until Ctrl-C. Nothing waits for it.

    Asks the aggregator, with a key of the role operate, and shows what is its tenant's.
    """
    from rich.console import Console

    from attune.cli.service import asked
    from attune.v1 import dataset_pb2, dataset_pb2_grpc

    request = dataset_pb2.TailLogRequest(responses=responses, feedback=feedback, persona=persona, text=text)
    told = Console(highlight=False, soft_wrap=True)
    shown = 0
    with asked(read_settings(config, data), "aggregator", server, dataset_pb2_grpc.LogServiceStub) as stub:
        parts = stub.TailLog(request)
        try:
            for part in parts:
                if part.HasField("start"):
                    sys.stderr.write("looking on; Ctrl-C ends it\n")
                elif part.HasField("missed"):
                    sys.stderr.write(f"{part.missed:,} records were gone before they could be shown\n")
                else:
                    told.print(*lines_of(part.event), sep="\n")
                    shown += 1
                if shown == most > 0:
                    break
        except KeyboardInterrupt:
            pass
        finally:
            parts.cancel()


def lines_of(event: "dataset_pb2.LoggedEvent") -> list[str]:
    """One for the event, and one for each text."""

    where = f"{event.topic.removeprefix('attune.')}/{event.partition}/{event.offset}"
    when = (
        time.strftime("%H:%M:%S", time.localtime(event.created_unix_ms / 1000)) if event.created_unix_ms else "--:--:--"
    )
    kind = event.WhichOneof("of")
    texts: dict[str, str] = {}
    if kind == "response":
        said = event.response
        words = [f"[bold]{plain(event.response_id)}[/]", said.policy_id or said.source, said.finish_reason]
        words.append(f"{said.prompt_tokens}+{said.output_tokens} tokens in {said.total_ms:.0f} ms")
        texts = {">": said.prompt, "<": said.text}
    elif kind == "feedback":
        one = event.feedback
        words = [f"[bold]{plain(one.kind)}[/]", plain(one.name), plain(one.value), f"by {one.author.replace('_', ' ')}"]
        words += ["taken back"] if one.retracted else []
        words += [f"revision {one.revision}"] if one.revision else []
        words.append(f"on {plain(event.response_id or event.conversation_id)}")
        texts = {"comment:": one.comment, "should have said:": one.correction}
    else:
        when, words = "", [f"[yellow]unreadable: {plain(event.unreadable)}[/]"]
    line = " ".join(filter(None, [when and f"[dim]{when}[/]", plain(event.persona), *words, f"[dim]{where}[/]"]))
    return [line, *(f"    {mark} {plain(said)}" for mark, said in texts.items() if said)]
