"""`attune train --once`: one training cycle now, outside of `attune up`."""

from typing import Annotated

import typer

from attune.cli.options import ConfigOption, DataOption, read_settings
from attune.errors import InvalidInput


def train(
    once: Annotated[
        bool, typer.Option("--once", help="Train one policy for each persona from its newest dataset.")
    ] = False,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Train now, from the newest datasets; `attune up` does it by itself whenever a new one is there."""
    if not once:
        raise InvalidInput("say `attune train --once`; the trainer that waits for datasets is a part of `attune up`")
    from attune.trainer.main import run_once

    run_once(read_settings(config, data))
