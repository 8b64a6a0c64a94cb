"""`attune feedback receipts`: what became of feedback."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from attune.cli.options import ConfigOption, DataOption, ServerOption, read_settings
from attune.cli.screen import local_time, plain

if TYPE_CHECKING:
    from attune.client.receipts import Receipt, Subject
    from attune.v1 import dataset_pb2

_FEEDBACK_ID = re.compile(r"[0-9a-f]{32}")
_RESPONSE_ID = re.compile(r"r-[0-9a-f]{32}-[0-9a-f]{16}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{40,}\.[A-Za-z0-9_-]{43}")
_STATES = {
    "not_stored": "not in the lake yet",
    "counts": "counts",
    "superseded": "superseded by {}",
    "retracted": "taken back",
    "repeated": "came twice; {} counts",
}
_PASSED = {None: "the gate has not spoken yet", True: "the gate passed it", False: "the gate refused it"}
_MOST_SHOWN = 5


def receipts(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="Of a feedback, of a response, the application's own of a feedback, or a feedback token."
        ),
    ],
    *,
    own: Annotated[bool, typer.Option("--own", help="ID is the application's own, whatever it looks like.")] = False,
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Say what became of feedback: in which datasets and policies it is, or why not."""
    from rich.console import Console

    from attune.client.place import place_of
    from attune.client.receipts import Receipt, Receipts

    where = place_of(read_settings(config, data), "aggregator", server)
    with Receipts(where.address, api_key=where.api_key, tls=where.tls) as desk:
        answer = desk.answer(**subject_of(subject, own=own))
    told = Console(highlight=False, soft_wrap=True)
    if answer.HasField("response"):
        told.print(*response_lines(answer.response), sep="\n", end="\n\n")
    for receipt in answer.receipts:
        told.print(*receipt_lines(Receipt.of(receipt)), sep="\n", end="\n\n")
    if not answer.receipts:
        told.print("nobody has said anything of it, or it is not in the lake yet")


def subject_of(text: str, *, own: bool = False) -> "Subject":
    """What kind of id it is, by its looks."""
    if own:
        return {"client_feedback_id": text}
    if _FEEDBACK_ID.fullmatch(text):
        return {"feedback_id": text}
    if _RESPONSE_ID.fullmatch(text):
        return {"response_id": text}
    return {"feedback_token": text} if _TOKEN.fullmatch(text) else {"client_feedback_id": text}


def response_lines(response: "dataset_pb2.ResponseState") -> Iterator[str]:
    """What is known of a response."""

    yield f"[bold]response[/] {plain(response.response_id)}"
    if not response.stored:
        yield "  not in the lake yet"
        return
    policy = f"answered by [green]{plain(response.policy_id)}[/]" if response.policy_id else "came from elsewhere"
    yield f"  {policy} as {plain(response.persona)}"
    yield from (f"  [yellow]{plain(note.sentence)}[/]" for note in response.notes)


def receipt_lines(receipt: "Receipt") -> Iterator[str]:
    """What became of one feedback, in sentences."""

    kind = f" {plain(receipt.kind)}{f' {plain(receipt.name)}' if receipt.name else ''}" if receipt.kind else ""
    when = f" · {local_time(receipt.created_unix_ms)}"
    yield f"[bold]feedback[/] {plain(receipt.feedback_id)}{kind}[dim]{when if receipt.created_unix_ms else ''}[/]"
    yield f"  {_STATES[receipt.state].format(plain(receipt.superseded_by))}"
    for use in receipt.datasets[:_MOST_SHOWN]:
        held_out = " [dim]held out: policies are checked against it and never learn from it[/]"
        yield f"  in dataset {plain(use.dataset_id)} [dim]({plain(use.recipe)})[/]{held_out * (use.split != 'train')}"
    if len(receipt.datasets) > _MOST_SHOWN:
        yield f"  and in {len(receipt.datasets) - _MOST_SHOWN} datasets before"
    for policy in receipt.policies[:_MOST_SHOWN]:
        did = "learned from it" if policy.split == "train" else "was checked against it"
        yield f"  [green]{plain(policy.policy_id)}[/] {did}; {_PASSED[policy.passed]}"
    if len(receipt.policies) > _MOST_SHOWN:
        yield f"  and {len(receipt.policies) - _MOST_SHOWN} policies before"
    for one in receipt.left_out:
        yield f"  left out by {plain(one.recipe)}: {plain(one.sentence)}"
    yield from (f"  [yellow]{plain(note.sentence)}[/]" for note in receipt.notes)
