"""`attune erase`: forgetting a person, and the certificate of it."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attune.cli.options import ConfigOption, DataOption, ServerOption, read_settings
from attune.cli.screen import local_time, open_table, plain, show_parts
from attune.cli.service import asked

if TYPE_CHECKING:
    from rich.table import Table

    from attune.v1 import dataset_pb2

_DEADLINE_SECONDS = 30.0
_LOOK_SECONDS = 0.5


def erase(
    user: Annotated[
        str, typer.Option("--user", metavar="ID", help="Whom to forget, as the application named them (end_user_id).")
    ] = "",
    *,
    show: Annotated[str, typer.Option("--show", metavar="ERASURE", help="How far one is; e-...")] = "",
    every: Annotated[bool, typer.Option("--list", help="List the tenant's erasures.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it is done.")] = True,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", metavar="FILE", help="Write the certificate there, JSON.")
    ] = None,
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Forget a person: delete what they said everywhere, retrain and withdraw policies that learned from it.

    Asks the aggregator, with a key of the role operate, and means that key's tenant. The work goes on without this
    command, over restarts; ask again for the same person, or --show it, to see how far it is.
    """
    from attune.errors import InvalidInput
    from attune.v1 import dataset_pb2, dataset_pb2_grpc

    if sum(map(bool, (user, show, every))) != 1:
        raise InvalidInput("say one of --user ID, --show ERASURE and --list")
    with asked(read_settings(config, data), "aggregator", server, dataset_pb2_grpc.ErasureServiceStub) as stub:
        if every:
            show_parts(
                _table(stub.ListErasures(dataset_pb2.ListErasuresRequest(), timeout=_DEADLINE_SECONDS).erasures),
            )
            return
        if user:
            erasure = stub.EraseUser(dataset_pb2.EraseUserRequest(end_user_id=user), timeout=_DEADLINE_SECONDS)
            sys.stderr.write(f"{erasure.erasure_id} is asked for\n")
        else:
            erasure = stub.GetErasure(dataset_pb2.GetErasureRequest(erasure_id=show), timeout=_DEADLINE_SECONDS)
        if wait and user:
            erasure = _wait(stub, erasure)
    show_parts(*_report(erasure))
    if certificate is not None and erasure.certificate_json:
        certificate.write_text(f"{erasure.certificate_json}\n", encoding="utf-8")


def _wait(stub: Any, erasure: "dataset_pb2.Erasure") -> "dataset_pb2.Erasure":
    """Says each step as it is done, and each new thing that is waited for. Ctrl-C ends the waiting alone."""
    from attune.v1 import dataset_pb2

    said: set[str] = set()
    request = dataset_pb2.GetErasureRequest(erasure_id=erasure.erasure_id)
    while True:
        news = [f"done: {step.store}" for step in erasure.steps]
        news += [f"waits for {erasure.waiting_for}"] if erasure.waiting_for else []
        for line in news:
            if line not in said:
                said.add(line)
                sys.stderr.write(f"  {line}\n")
        if erasure.certificate_json:
            return erasure
        time.sleep(_LOOK_SECONDS)
        erasure = stub.GetErasure(request, timeout=_DEADLINE_SECONDS)


def _report(erasure: "dataset_pb2.Erasure") -> Iterator[object]:
    steps = open_table("store", "removed", title=f"erasure {plain(erasure.erasure_id)}")
    for step in erasure.steps:
        removed = ", ".join(f"{count:,} {name}" for name, count in sorted(step.removed.items()) if count)
        steps.add_row(step.store, removed or "[dim]nothing[/]")
    yield steps
    if erasure.policy_ids:
        yield f"policies that learned from them: {plain(', '.join(erasure.policy_ids))}"
    if erasure.certificate_json:
        import json

        content = json.loads(erasure.certificate_json)
        yield f"done; the certificate's SHA-256 is {content['sha256']}"
        yield "what cannot be removed from here: " + "; ".join(content["remains"])
    elif erasure.waiting_for:
        yield f"waits for {plain(erasure.waiting_for)}"
    else:
        yield "at work"


def _table(erasures: "Any") -> "Table":
    table = open_table("erasure", "asked for", "state")
    for erasure in erasures:
        state = (
            "done"
            if erasure.certificate_json
            else plain(f"waits for {erasure.waiting_for}" * bool(erasure.waiting_for))
        )
        table.add_row(plain(erasure.erasure_id), local_time(erasure.requested_unix_ms), state or "at work")
    return table
