"""`attune topics`: the topics in Kafka."""

import sys
from typing import TYPE_CHECKING

import typer

from attune.cli.options import ConfigOption, DataOption, read_settings
from attune.cli.screen import open_console, open_table
from attune.errors import FailedPrecondition

if TYPE_CHECKING:
    from attune.settings import KafkaSettings

topics_app = typer.Typer(help="The topics in Kafka: create, list.", no_args_is_help=True)


@topics_app.command("create")
def create(config: ConfigOption = None, data: DataOption = None) -> None:
    """Make the topics that are not there, as the settings of [kafka] say; those that are there stay as they are."""
    from attune.eventlog.cluster import Cluster
    from attune.eventlog.topics import TopicRules, create_topics

    kafka = _kafka(config, data)
    made = create_topics(Cluster.of(kafka), TopicRules.of(kafka))
    sys.stdout.write("".join(f"made {name}\n" for name in made) or "all topics are there\n")


@topics_app.command("list")
def list_topics(config: ConfigOption = None, data: DataOption = None) -> None:
    """List our topics as the brokers have them."""
    from attune.eventlog.cluster import Cluster
    from attune.eventlog.topics import describe_topics

    numbers = ("partitions", "replication", "records")
    table = open_table("topic", *numbers, right=numbers, whole=("topic", *numbers))
    for topic in describe_topics(Cluster.of(_kafka(config, data))):
        table.add_row(topic.name, str(topic.partitions), str(topic.replication), f"{topic.records:,}")
    open_console().print(table if table.rows else "no topics yet: `attune topics create` makes them")


def _kafka(config: ConfigOption, data: DataOption) -> "KafkaSettings":
    kafka = read_settings(config, data).kafka
    if not kafka.servers:
        raise FailedPrecondition("kafka.servers is empty; set it, or ATTUNE_KAFKA__SERVERS=HOST:PORT")
    return kafka
