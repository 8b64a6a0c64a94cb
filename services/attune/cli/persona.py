"""`attune persona`: who answers, and how. Works on the data folder; running services notice within two seconds."""

import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attune.cli.options import ConfigOption, DataOption, read_settings
from attune.cli.screen import local_time, open_console, open_table, plain
from attune.ids import DEFAULT_TENANT

if TYPE_CHECKING:
    from rich.console import RenderableType

    from attune.personas import Persona, PersonaVersion, PersonaVersions
    from attune.settings import Settings

persona_app = typer.Typer(help="Personas: apply, list, show, diff.", no_args_is_help=True)

TenantOption = Annotated[str, typer.Option(metavar="NAME", help="Whose persona it is.")]

_VERSIONS_SHOWN = 10
_LINE_CHARACTERS = 60


@persona_app.command("apply")
def apply(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="TOML, one persona each, with its name: concierge.toml.")
    ],
    *,
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose they are, where the file does not say.")
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Put personas in service. All files are checked first; what is in service already changes nothing."""
    from attune.errors import InvalidInput
    from attune.personas.persona import read_persona_file

    versions = _versions(read_settings(config, data))
    found = [read_persona_file(file, tenant) for file in files]
    labels = [persona.label for persona, _ in found]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise InvalidInput(f"two of these files are persona {twice[0]}")
    console = open_console()
    for persona, text in found:
        earlier = versions.history(persona.tenant, persona.name)
        version, changed = versions.apply(persona, text)
        name = f"[bold]{persona.label}[/] [dim]version {version.number} · {version.persona.version}[/]"
        if not changed:
            console.print(f"[dim]=[/] {name} in service already")
        elif not earlier:
            console.print(f"[green]+[/] {name} new")
        else:
            keys = ", ".join(changed_keys(earlier[0].persona, persona))
            console.print(f"[green]✓[/] {name} changed: {keys}")


@persona_app.command("list")
def list_personas(
    tenant: Annotated[str, typer.Option(metavar="NAME", help="Of this tenant alone.")] = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """List the personas in service."""
    settings = read_settings(config, data)
    versions = _versions(settings)
    columns = ("persona", "tenant", "version", "applied", "tools", "approval")
    table = open_table(*columns, "system prompt", whole=columns)
    for (whose, name), numbers in versions.all().items():
        if tenant in ("", whose):
            shown = f"[bold]{name}[/] [dim](default)[/]" if name == settings.default_persona else name
            table.add_row(shown, whose, *_row(versions, whose, name, numbers))
    open_console().print(
        table if table.rows else "no personas yet: `attune persona apply` makes one, as the first start does"
    )


@persona_app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose.")],
    *,
    version: Annotated[
        str, typer.Option(metavar="V", help="A number, or 8 digits and more of a version.  [default: in service]")
    ] = "",
    tenant: TenantOption = DEFAULT_TENANT,
    toml: Annotated[bool, typer.Option("--toml", help="Print its file as it was applied, and nothing else.")] = False,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Show a persona: prompt, guidelines, sampling and limits, tools, tags, and its earlier versions."""
    versions = _versions(read_settings(config, data))
    shown = versions.find(tenant, name, version) if version else versions.current(tenant, name)
    if toml:
        sys.stdout.write(shown.text)
        return
    console = open_console()
    for part in _picture(shown, versions.history(tenant, name)):
        console.print(part)


@persona_app.command("diff")
def diff(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose.")],
    other: Annotated[str, typer.Argument(metavar="FILE|VERSION", help="What to hold it against.")],
    tenant: TenantOption = DEFAULT_TENANT,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Show how a file or another version (3, or 8 digits of its hash) differs from what is in service."""
    from attune.personas.persona import read_persona_file

    versions = _versions(read_settings(config, data))
    current = versions.current(tenant, name)
    if "/" in other or other.endswith(".toml"):
        persona, text = read_persona_file(Path(other), tenant, name)
    else:
        found = versions.find(tenant, name, other)
        persona, text = found.persona, found.text
        other = f"version {found.number}"
    console = open_console()
    for line in _changes(current, text, other):
        console.print(line)
    if persona.version == current.persona.version:
        same = "the same" if text == current.text else "written otherwise, and the same"
        console.print(f"[dim]{same} definition as version {current.number}, which is in service[/]")


def changed_keys(before: "Persona", after: "Persona") -> list[str]:
    """What `after` says otherwise: `sampling.temperature`, `tools`."""
    old, new = before.model_dump(), after.model_dump()
    keys = []
    for key, value in new.items():
        if isinstance(value, dict):
            keys += [f"{key}.{inner}" for inner in value if value[inner] != old[key][inner]]
        elif value != old[key]:
            keys.append(key)
    return keys


def _versions(settings: "Settings") -> "PersonaVersions":
    from attune.personas import PersonaVersions

    return PersonaVersions(settings.data / "personas")


def _row(versions: "PersonaVersions", tenant: str, name: str, numbers: Sequence[int]) -> Iterator[str]:
    """What the list says of one persona."""
    from attune.personas import PersonaError

    try:
        current = versions.current(tenant, name)
    except PersonaError:
        yield f"[red]{numbers[-1]}: damaged[/]"
        return
    persona = current.persona
    damaged = "" if current.number == numbers[-1] else f" [red]({numbers[-1]} is damaged)[/]"
    yield f"{current.number} [dim]{persona.version[:8]}[/]{damaged}"
    yield local_time(current.applied_unix_ms)
    yield ", ".join(tool.name for tool in persona.tools)
    yield persona.approval
    yield plain(_first_line(persona.system_prompt))


def _picture(shown: "PersonaVersion", history: "Sequence[PersonaVersion]") -> "Iterator[RenderableType]":
    """Everything about one version, from the top."""
    from rich.markdown import Markdown
    from rich.panel import Panel
    from rich.text import Text

    persona = shown.persona
    state = "in service" if shown.number == history[0].number else f"version {history[0].number} is in service"
    yield (
        f"[bold]{persona.label}[/] [dim]version {shown.number} · {persona.version} · "
        f"applied {local_time(shown.applied_unix_ms)} · {state}[/]"
    )
    yield Panel(Text(_text(persona.system_prompt)), title="system prompt", title_align="left", border_style="dim")
    if persona.guidelines:
        title = f"guidelines [dim]version {persona.guideline_version}[/]"
        yield Panel(Markdown(_text(persona.guidelines)), title=title, title_align="left", border_style="dim")
    yield _sampling_table(persona)
    yield ""
    if persona.tools:
        yield _tools_table(persona)
        yield ""
    yield f"[bold]feedback tags[/]  {plain(', '.join(persona.feedback_tags)) or 'none'}"
    yield f"[bold]approval[/]  {_approval(persona)}"
    if len(history) > 1:
        yield ""
        yield _versions_table(history)


def _sampling_table(persona: "Persona") -> "RenderableType":
    sampling, limits = persona.sampling, persona.limits
    rows = [
        ("temperature", f"{sampling.temperature:g}", f"{limits.min_temperature:g} to {limits.max_temperature:g}"),
        (
            "max_tokens",
            str(sampling.max_tokens),
            "what the model takes" if limits.max_tokens is None else f"at most {limits.max_tokens}",
        ),
        ("top_p", f"{sampling.top_p:g}", ""),
        ("top_k", str(sampling.top_k or "all"), ""),
        ("presence_penalty", f"{sampling.presence_penalty:g}", ""),
        ("frequency_penalty", f"{sampling.frequency_penalty:g}", ""),
    ]
    table = open_table("sampling", "where a request says nothing", "limits")
    for row in rows:
        table.add_row(*row)
    return table


def _tools_table(persona: "Persona") -> "RenderableType":
    table = open_table("tool", "arguments", "description")
    for tool in persona.tools:
        required = tool.parameters.get("required", [])
        names = [name if name in required else f"{name}?" for name in tool.parameters.get("properties", {})]
        table.add_row(tool.name, plain(", ".join(names)), plain(tool.description))
    return table


def _versions_table(history: "Sequence[PersonaVersion]") -> "RenderableType":
    table = open_table("number", "version", "applied", "what changed")
    for version, before in zip(history[:_VERSIONS_SHOWN], [*history[1:], None], strict=False):
        what = "the first" if before is None else ", ".join(changed_keys(before.persona, version.persona))
        table.add_row(str(version.number), version.persona.version, local_time(version.applied_unix_ms), plain(what))
    if len(history) > _VERSIONS_SHOWN:
        table.add_row("", f"[dim]and {len(history) - _VERSIONS_SHOWN} before[/]")
    return table


def _approval(persona: "Persona") -> str:
    return "a person approves each policy" if persona.approval == "person" else "what passes the gate is rolled out"


def _changes(current: "PersonaVersion", text: str, other: str) -> "Iterator[RenderableType]":
    """A unified diff, coloured; nothing where the texts are the same."""
    from rich.text import Text

    styles = {"+": "green", "-": "red", "@": "cyan"}
    lines = difflib.unified_diff(
        current.text.splitlines(), text.splitlines(), f"version {current.number}, in service", other, lineterm=""
    )
    for line in lines:
        style = "bold" if line.startswith(("+++", "---")) else styles.get(line[:1], "")
        yield Text(_text(line), style=style)


def _text(text: str) -> str:
    """An operator's text without what would steer the terminal."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "�" for letter in text).strip("\n")


def _first_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LINE_CHARACTERS else f"{line[: _LINE_CHARACTERS - 1]}…"
