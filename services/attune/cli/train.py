"""`attune train --once`: one training cycle now, outside of `attune up`."""

from typing import Annotated

import typer

from attune.cli.options import ConfigOption, DataOption, read_settings
from attune.errors import InvalidInput


def train(
    once: Annotated[
        bool, typer.Option("--once", help="One cycle for each persona that has a dataset not trained on yet.")
    ] = False,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Train now, from the newest datasets; attune up does it by itself whenever a new one is there."""
    if not once:
        raise InvalidInput("say `attune train --once`; the trainer that waits for datasets is a part of `attune up`")
    settings = read_settings(config, data)
    from attune.trainer.main import run_once

    outcomes = run_once(settings)
    for outcome in outcomes:
        policy = f", policy {outcome.policy_id}" if outcome.policy_id else ""
        reason = f": {outcome.reason}" if outcome.reason else ""
        print(f"{outcome.persona}: {outcome.outcome}{policy} after {outcome.seconds:.0f} s{reason}")
    if not outcomes:
        print(f"nothing to train on: no dataset in {settings.data / 'datasets'} is new, or another trainer is at it")
    if any(outcome.outcome == "failed" for outcome in outcomes):
        raise typer.Exit(1)
