"""`attune rehearse`: the whole ring with synthetic users, and a report of what it learned."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def rehearse(
    *,
    seed: Annotated[int, typer.Option(min=0, help="Of what users ask, and of which thumbs are wrong.")] = 1,
    seconds: Annotated[
        float,
        typer.Option(min=120, help="Time for all of it, and up to as much again while what is needed is on its way."),
    ] = 420,
    shuffle_thumbs: Annotated[
        bool, typer.Option("--shuffle-thumbs", help="Thumbs say nothing about the answer; nothing may be learned.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines instead of the live view, as without a terminal.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the report goes.  [default: report/ in the data folder]"),
    ] = None,
    config: Annotated[Path, typer.Option(metavar="FILE", help="Settings of the ring.")] = Path("deploy/demo.toml"),
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The ring's data folder.  [default: rehearsal-<time> here]")
    ] = None,
    address: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Chat with an `attune up` that runs already, on the folder that --data names; it is not ended.",
        ),
    ] = "",
) -> None:
    """Watch the ring learn from synthetic users who vote; takes 4 to 8 minutes on two cores.

    Sixty users of the concierge wish never to be told that something was done which could not be done; a fifth of
    their thumbs are wrong. The ring trains on their votes and swaps new policies in while they talk. Ends with a
    report, and with exit status 0 only if all that is expected of a rehearsal came.
    """
    plan = {
        "seed": seed,
        "seconds": seconds,
        "shuffle_thumbs": shuffle_thumbs,
        "plain": plain,
        "report": str(report or ""),
        "config": str(config),
        "data": str(data or ""),
        "address": address,
    }
    # The command line knows nothing of the rehearsal's parts: it becomes the rehearsal's process.
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "attune.rehearsal.rehearse", json.dumps(plan)])
