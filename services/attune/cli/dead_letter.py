"""`attune dead-letter`: records that could not be read, or that Kafka refused; look at them, and try them again."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from attune.cli.options import ConfigOption, DataOption, read_settings
from attune.cli.screen import open_console, open_table, plain
from attune.errors import AttuneError, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attune.aggregator.dead_letters import DeadLetter
    from attune.lake.lake import Lake
    from attune.settings import Settings

dead_letter_app = typer.Typer(help="Records that were set aside: list, show, replay.", no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As in the list.")]


@dead_letter_app.command("list")
def list_letters(
    *,
    limit: Annotated[int, typer.Option(min=1, help="Most that are shown, the last ones.")] = 100,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """List what was set aside and why, by where it came from; what people wrote is not shown."""
    from collections import deque

    from attune.aggregator.dead_letters import is_replayed

    settings = read_settings(config, data)
    lake = _lake(settings)
    shown: deque[tuple[str, DeadLetter]] = deque(maxlen=limit)
    count = 0
    for found in _all(settings, lake):
        shown.append(found)
        count += 1
    console = open_console()
    if not shown:
        console.print("no dead letters")
        return
    columns = ("id", "topic", "from", "bytes", "kept in", "replayed")
    table = open_table(*columns, "reason", right=("bytes",), whole=columns)
    for place, letter in shown:
        table.add_row(
            letter.id,
            letter.topic,
            f"{letter.partition}/{letter.offset}",
            f"{letter.payload_bytes:,}",
            place,
            "yes" if lake is not None and is_replayed(letter, lake) else "",
            plain(letter.reason),
        )
    console.print(table)
    if count > limit:
        console.print(f"and {count - limit} before them")


@dead_letter_app.command("show")
def show(
    dead_letter: IdArgument,
    *,
    raw: Annotated[bool, typer.Option("--raw", help="Write its bytes to standard output, and nothing else.")] = False,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Show one of them."""
    settings = read_settings(config, data)
    place, letter = _find(settings, _lake(settings), dead_letter)
    if raw:
        sys.stdout.buffer.write(letter.payload)
        return
    rows = {
        "id": letter.id,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "log": letter.log_id,
        "kept in": place,
        "reason": letter.reason,
        "bytes": letter.payload_bytes,
        "sha256": letter.payload_sha256,
    }
    for name, value in rows.items():
        print(f"{name:<10} {value}")
    if letter.payload_bytes > len(letter.payload):
        print(f"of the bytes the first {len(letter.payload)} are kept")


@dead_letter_app.command("replay")
def replay_letters(
    dead_letters: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="As in the list.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that were not replayed yet.")] = False,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Try again to bring records into the lake, each once: after an update that knows them, or a higher limit.

    Exits with 1 when one of them is still no event.
    """
    from attune.aggregator.dead_letters import is_replayed, replay
    from attune.aggregator.main import open_lake
    from attune.aggregator.privacy.guard import Guard
    from attune.aggregator.privacy.scrubber import Scrubber
    from attune.erasures import Erasures
    from attune.lake.place import lake_place

    if bool(dead_letters) == everything:
        raise typer.BadParameter("name one or more, or say --all")
    settings = read_settings(config, data)
    lake = open_lake(lake_place(settings.lake, settings.data), settings)
    guard = Guard(Scrubber.from_settings(settings.privacy), Erasures(settings.data / "erasures"))
    if everything:
        letters = [letter for _, letter in _all(settings, lake) if not is_replayed(letter, lake)]
    else:
        letters = [_find(settings, lake, each)[1] for each in dead_letters or ()]
    failed = 0
    for letter in letters:
        try:
            said = str(replay(letter, lake, guard))
        except AttuneError as error:
            failed += 1
            said = f"not replayed: {error.message}"
        print(f"{letter.id} {said}")
    if not letters:
        print("nothing to replay")
    if failed:
        raise typer.Exit(1)


def _all(settings: "Settings", lake: "Lake | None") -> "Iterator[tuple[str, DeadLetter]]":
    """Where each is kept, and it. Kafka comes before the lake, which has those from before Kafka was set."""
    import hashlib

    from attune.aggregator.dead_letters import DeadLetter, DeadLetterTable, DeadLetterTopic
    from attune.eventlog.cluster import Cluster
    from attune.eventlog.refused import RefusedRecords

    if settings.kafka.servers:
        for letter in DeadLetterTopic(Cluster.of(settings.kafka)).read():
            yield "Kafka", letter
    if lake is not None:
        for letter in DeadLetterTable(lake.dead_letter).read():
            yield "lake", letter
    for refused in RefusedRecords(settings.data / "spool").read():
        record = refused.record
        yield (
            "spool",
            DeadLetter(
                topic=record.topic,
                log_id=refused.log_id,
                partition=record.partition,
                offset=record.offset,
                reason=refused.reason,
                key=record.key,
                payload=record.payload,
                payload_bytes=len(record.payload),
                payload_sha256=hashlib.sha256(record.payload).hexdigest(),
            ),
        )


def _find(settings: "Settings", lake: "Lake | None", dead_letter: str) -> "tuple[str, DeadLetter]":
    for place, letter in _all(settings, lake):
        if letter.id == dead_letter:
            return place, letter
    raise NotFound(f"no dead letter {dead_letter}; `attune dead-letter list` lists them")


def _lake(settings: "Settings") -> "Lake | None":
    """None where there is none yet: looking at a lake does not make one."""
    from attune.aggregator.main import open_lake
    from attune.lake.delta import open_table
    from attune.lake.place import lake_place
    from attune.lake.tables import RESPONSES

    place = lake_place(settings.lake, settings.data)
    return None if open_table(place / RESPONSES) is None else open_lake(place, settings)
