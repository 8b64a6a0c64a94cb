"""`attune dead-letter`, as an operator types it."""

import os
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from attune.aggregator.dead_letters import DeadLetterTopic
from attune.cli.main import app
from attune.errors import NotFound
from attune.eventlog import RESPONSES
from attune.eventlog.broker import LocalBroker
from attune.eventlog.cluster import Cluster
from attune.lake.tables import Position, dead_letter_row
from attune.settings import KafkaSettings
from tests.aggregator.plant import Plant
from tests.brokers import cluster_on
from tests.lake.events import response_event
from tests.shipper.ferry import Ferry


def run(data: Path, *arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["dead-letter", *arguments, "--data", str(data)], catch_exceptions=False
    )


def test_where_there_are_none_it_says_so_and_makes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "list").stdout == "no dead letters\n"
    assert not list(tmp_path.iterdir())
    with pytest.raises(NotFound, match="no dead letter abc; "):
        run(tmp_path, "show", "abc")


def test_letters_are_listed_shown_and_tried_again(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    secret = response_event(1, text="s3cret")
    secret.header.schema_version = 9
    plant.append(secret, b"\xff\xfe", response_event(2))
    plant.ingest_all()

    listed = run(plant.folder, "list").stdout
    assert [line.split()[1:5] for line in listed.splitlines()[1:]] == [
        [RESPONSES, "0/0", str(secret.ByteSize()), "lake"],
        [RESPONSES, "0/1", "2", "lake"],
    ]
    assert "schema_version is 9; this version knows 1" in listed
    assert "s3cret" not in listed
    first, second = (line.split()[0] for line in listed.splitlines()[1:])
    assert "not a ResponseEvent" in run(plant.folder, "show", second).stdout
    assert run(plant.folder, "show", second, "--raw").stdout_bytes == b"\xff\xfe"
    assert "1 before them" in run(plant.folder, "list", "--limit", "1").stdout

    tried = run(plant.folder, "replay", first)
    assert tried.exit_code == 1
    assert tried.stdout == f"{first} not replayed: still no event: schema_version is 9; this version knows 1\n"
    assert run(plant.folder, "replay").exit_code == 2
    assert run(plant.folder, "replay", "--all", first).exit_code == 2
    plant.close()


def test_with_kafka_those_of_its_topic_and_of_the_spool_are_found_and_replayed(
    broker: LocalBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = cluster_on(broker)
    monkeypatch.setenv("ATTUNE_KAFKA__SERVERS", broker.address)
    monkeypatch.setenv("ATTUNE_KAFKA__TOPIC_PREFIX", small.topic_prefix)
    ferry = Ferry(tmp_path, small)
    try:
        ferry.append(response_event(1, text="x" * (2 << 20)))
        ferry.ship_all()
    finally:
        ferry.close()
    cluster = Cluster.of(KafkaSettings(servers=(broker.address,), topic_prefix=small.topic_prefix))
    event = response_event(2).SerializeToString()
    rows = [
        dead_letter_row(RESPONSES, b"key", payload, "unknown", Position("log", 3, offset))
        for offset, payload in ((7, event), (8, os.urandom(10)))
    ]
    DeadLetterTopic(cluster).set_aside(rows, "source", 9)

    listed = [line.split() for line in run(tmp_path, "list").stdout.splitlines()[1:]]
    assert [(line[2], line[4]) for line in listed] == [("3/7", "Kafka"), ("3/8", "Kafka"), ("0/0", "spool")]
    tried = run(tmp_path, "replay", "--all")
    assert tried.exit_code == 1
    assert [line.partition(" ")[2][:15] for line in tried.stdout.splitlines()] == [
        "is in the lake",
        "not replayed: s",
        "is in the lake",
    ]
    assert ferry.ids() == ["response-1", "response-2"]
    again = run(tmp_path, "replay", listed[0][0])
    assert again.stdout.endswith("not replayed: it was replayed before\n")
    assert [line.split()[5:6] for line in run(tmp_path, "list").stdout.splitlines()[1:]][::2] == [["yes"], ["yes"]]
