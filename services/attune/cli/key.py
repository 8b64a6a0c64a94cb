"""`attune key`: who may call, and what signs. Works on the data folder; running services notice within two seconds."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from attune.access import KeyLimits, Role
from attune.cli.options import ConfigOption, DataOption, read_settings
from attune.cli.screen import local_time, open_console, open_table, plain
from attune.errors import NotFound
from attune.ids import DEFAULT_TENANT

if TYPE_CHECKING:
    from pathlib import Path

    from attune.personas.api_keys import ApiKey, KeyStore
    from attune.settings import Settings

key_app = typer.Typer(help="API keys: create, list, revoke; signing keys: rotate-signing.", no_args_is_help=True)

_ROLES_HELP = "What it is for, once or more often: chat, feedback, review, operate.  [default: chat, feedback]"


@key_app.command("create")
def create(
    *,
    tenant: Annotated[str, typer.Option(metavar="NAME", help="Whose key it is.")] = DEFAULT_TENANT,
    role: Annotated[list[Role] | None, typer.Option(help=_ROLES_HELP, show_choices=False, metavar="ROLE")] = None,
    label: Annotated[str, typer.Option(metavar="TEXT", help="To tell keys apart in the list.")] = "",
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Chat requests a minute.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Tokens read and written a minute.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(min=1, help="Tokens read and written a day.")] = None,
    concurrent_requests: Annotated[int | None, typer.Option(min=1, help="Chat requests at once.")] = None,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Make a key and print it, this once: only a hash of it is kept."""
    limits = KeyLimits(requests_per_minute, tokens_per_minute, tokens_per_day, concurrent_requests)
    key = _store(read_settings(config, data)).create(
        tenant, role or (Role.CHAT, Role.FEEDBACK), label=label, limits=limits
    )
    sys.stdout.write(f"{key}\n")
    if sys.stderr.isatty():
        sys.stderr.write("Keep it: it cannot be shown again.\n")


@key_app.command("list")
def list_keys(config: ConfigOption = None, data: DataOption = None) -> None:
    """List all keys, without their secrets; revoked ones stay in the list."""

    # In a narrow terminal the others fold: a key that is cut off could not be copied to `revoke`.
    table = open_table("key", "tenant", "roles", "limits", "made", "revoked", "label", whole=("key",))
    for key in _store(read_settings(config, data)).list():
        table.add_row(
            f"ak-{key.key_id}-…",
            key.tenant,
            ", ".join(key.roles),
            _limits(key),
            local_time(key.created_unix_ms),
            local_time(key.revoked_unix_ms),
            plain(key.label),
        )
    open_console().print(table if table.rows else "no keys yet: `attune key create` makes one")


@key_app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="As in the list: ak-0123456789ab, or without `ak-`.")],
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Refuse a key from now on; within two seconds in running services. Running streams go on."""
    parts = key_id.removeprefix("ak-").split("-")
    key = _store(read_settings(config, data)).revoke(parts[0])
    sys.stdout.write(f"ak-{key.key_id} is revoked\n")


@key_app.command("rotate-signing")
def rotate_signing(
    retire: Annotated[
        bool, typer.Option("--retire", help="Also refuse, from now on, whatever the older keys signed: one has leaked.")
    ] = False,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Sign response ids and feedback tokens with a new key from now on; what older keys signed is taken as before."""
    from attune.signing import SigningKeys

    settings = read_settings(config, data)
    keys = SigningKeys(_keys_folder(settings))
    key = keys.rotate(token_life_seconds=settings.inference.feedback_token_days * 86_400, retire=retire)
    older = ", ".join(one.key_id for one in keys.all()[:-1])
    sys.stdout.write(
        f"{key.key_id} signs from now on; {'still verified: ' + older if older else 'no older key is kept'}\n"
    )


def _keys_folder(settings: "Settings") -> "Path":
    """Of the installation that is there: to rotate in a folder where nothing is would only hide a mistake."""
    folder = settings.data / "keys"
    if not folder.is_dir():
        raise NotFound(f"{settings.data} is no data folder of attune; name one with --data")
    return folder


def _store(settings: "Settings") -> "KeyStore":
    from attune.personas.api_keys import KeyStore

    return KeyStore(settings.data / "access")


def _limits(key: "ApiKey") -> str:
    names = {
        "requests_per_minute": "requests/min",
        "tokens_per_minute": "tokens/min",
        "tokens_per_day": "tokens/day",
        "concurrent_requests": "at once",
    }
    return ", ".join(
        f"{getattr(key.limits, field)} {name}" for field, name in names.items() if getattr(key.limits, field)
    )
