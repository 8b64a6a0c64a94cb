"""Options that commands share, and the settings they lead to."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from attune.settings import Settings

DEFAULT_CONFIG = Path("attune.toml")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings, TOML; attune.toml without it, if it is there."),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="FOLDER", help="The folder that everything is kept in.")
]

ServerOption = Annotated[
    str, typer.Option("--server", metavar="HOST[:PORT]", help="Where; without it the `attune up` of the data folder.")
]


def config_file(config: Path | None) -> Path | None:
    """The settings file to read: the one named, else ./attune.toml if it is there, else none."""
    if config is None and DEFAULT_CONFIG.exists():
        return DEFAULT_CONFIG.absolute()
    return None if config is None else config.absolute()


def environment(**overrides: object) -> dict[str, str]:
    """This process's environment with settings given on the command line; None overrides nothing.

    Nested settings are written as in the environment: `environment(inference__grpc_port=0)`.
    """
    given = {f"ATTUNE_{key.upper()}": str(value) for key, value in overrides.items() if value is not None}
    return {**os.environ, **given}


def read_settings(config: Path | None, data: Path | None = None) -> "Settings":
    """Settings for a command that runs in this process. Raises SettingsError."""
    from attune.settings import load_settings

    return load_settings(config_file(config), environment(data=data))
