"""`attune ...`. Commands import what they need when they run: `attune --help` is to be quick."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from attune.cli.config import config_app
from attune.cli.dataset import dataset_app
from attune.cli.dead_letter import dead_letter_app
from attune.cli.erase import erase
from attune.cli.feedback import feedback_app
from attune.cli.key import key_app
from attune.cli.lake import lake_app
from attune.cli.lineage import lineage
from attune.cli.log import log_app
from attune.cli.options import ConfigOption, DataOption, ServerOption, config_file, environment, read_settings
from attune.cli.persona import persona_app
from attune.cli.policy import policy_app
from attune.cli.rehearse import rehearse
from attune.cli.topics import topics_app
from attune.cli.train import train
from attune.errors import AttuneError, InvalidInput

app = typer.Typer(
    name="attune",
    help="Serves a chat model and makes it better from what its users say about it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
demo_model_app = typer.Typer(help="The small model that attune is shown with.", no_args_is_help=True)


@app.command("up")
def up(
    *,
    config: ConfigOption = None,
    data: DataOption = None,
    model: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The base model, in transformers' format, or `demo`.")
    ] = None,
    personas: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="What a new data folder begins with, or `demo`.")
    ] = None,
    kafka: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Brokers that carry the events; several with commas.")
    ] = None,
    with_kafka: Annotated[
        bool, typer.Option("--with-kafka", help="Run a broker as well; wants Java 17, and Maven the first time.")
    ] = False,
) -> None:
    """Run the whole ring on this machine until Ctrl-C: serve, collect, train, roll out."""
    from attune.cli.up import ring, steady_console
    from attune.cli.up import up as run
    from attune.settings import load_settings

    file = config_file(config)
    given = environment(data=data, model=model, personas=personas, kafka__servers=kafka)
    if with_kafka:
        if kafka is not None:
            raise InvalidInput("--kafka and --with-kafka: name a broker, or have one run")
        own = load_settings(file, given).broker
        given |= {"ATTUNE_KAFKA__SERVERS": f"{own.host}:{own.port}", "ATTUNE_BROKER__ENABLED": "true"}
    settings = load_settings(file, given)
    if not run(settings, ring(settings, file), given, steady_console()):
        raise typer.Exit(1)


@app.command("chat")
def chat(
    persona: Annotated[str, typer.Option(help="Whom to talk to; the server's default without it.")] = "",
    server: ServerOption = "",
    end_user: Annotated[str, typer.Option(help="Who is talking; only a keyed hash of it is kept.")] = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Talk to a persona, and say what you think of its answers with /up and /down."""
    from attune.cli.chat import run
    from attune.client.place import place_of
    from attune.client.receipts import Receipts, aggregator_of

    settings = read_settings(config, data)
    chats = place_of(settings, "inference", server)

    def desk() -> Receipts:
        where = place_of(settings, "aggregator", aggregator_of(chats.address) if server else "")
        return Receipts(where.address, api_key=where.api_key, tls=where.tls)

    whom = persona or ("" if server else settings.default_persona)
    run(chats, whom, end_user, desk)


@demo_model_app.command("build")
def build_demo_model(
    target: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write it; without it where attune keeps it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Another seed is another model.")] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="Budget on one core; fixes the steps.")] = None,
) -> None:
    """Train the demo model anew, from templates: six to ten minutes on one core."""
    given = {"--target": target, "--seed": seed, "--seconds": seconds}
    options = [str(part) for name, value in given.items() if value is not None for part in (name, value)]
    # In place of this process: the command line and the rehearsal stand side by side and import nothing of each other.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "attune.rehearsal.demo.build", *options])


app.command("train")(train)
app.command("rehearse")(rehearse)
app.command("erase")(erase)
app.command("lineage")(lineage)
app.add_typer(persona_app, name="persona")
app.add_typer(policy_app, name="policy")
app.add_typer(feedback_app, name="feedback")
app.add_typer(key_app, name="key")
app.add_typer(lake_app, name="lake")
app.add_typer(dataset_app, name="dataset")
app.add_typer(log_app, name="log")
app.add_typer(topics_app, name="topics")
app.add_typer(dead_letter_app, name="dead-letter")
app.add_typer(config_app, name="config")
app.add_typer(demo_model_app, name="demo-model")


def main() -> None:
    """Runs a command; what went wrong for a known reason is one sentence and exit status 1."""
    # Its core would write a line of its own for each handshake that fails.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    command = typer.main.get_command(app)
    _name_no_type_of_switches(command)
    try:
        command()
    except AttuneError as error:
        sys.exit(f"attune: {error.message}")
    except BrokenPipeError:
        _drop_output()  # whoever read it has gone
        sys.exit(1)
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        _drop_output()
        sys.exit(f"attune: {where}{(error.strerror or str(error)).lower()}")


def _name_no_type_of_switches(command: Any) -> None:
    """Typer's help screens call them `--help <bool>`, which reads as if a value were wanted."""
    for option in (*command.params, command.get_help_option(typer.Context(command))):
        if getattr(option, "is_flag", False):
            option.metavar = ""
    for inner in getattr(command, "commands", {}).values():
        _name_no_type_of_switches(inner)


def _drop_output() -> None:
    """Keeps the interpreter from writing once more, at exit, what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
