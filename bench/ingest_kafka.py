"""Measures ingest from Kafka: `python -m bench.ingest_kafka`.

Responses wait in the topic of a broker as `attune up --with-kafka` starts it, in as many partitions; ingest moves them
into the lake, exactly once and durably, with and without masking what is personal. Beside it, in the same round and on
the same cores, a bare loop: kafka-python's consumer and protobuf's decoder, and nothing is done with what comes out.
Each in a process of its own, in turns; the clock starts when the consumer knows its partitions. Writes the section
`Ingest from Kafka` of docs/measurements.md with --write. It needs Java, and Maven the first time.
"""

# ruff: noqa: T201 - it talks to the terminal, and its processes to each other

import argparse
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path

from kafka import KafkaConsumer

from attune.aggregator.ingest import READER, Ingest
from attune.aggregator.privacy.guard import Guard
from attune.aggregator.privacy.scrubber import Scrubber
from attune.eventlog import RESPONSES
from attune.eventlog.broker import LocalBroker, fetch_jars, free_port
from attune.eventlog.cluster import Cluster
from attune.eventlog.kafka import KafkaLogReader
from attune.eventlog.producer import Message, Producer
from attune.eventlog.topics import TopicRules, create_topics
from attune.lake.lake import Lake
from attune.settings import AggregatorSettings, KafkaSettings, PrivacySettings
from attune.v1 import event_pb2
from bench.ingest import OUTPUT_TOKENS, PROMPT_TOKENS, compared, in_turns, publish, response
from bench.serving import machine

WAYS = ("bare loop", "attune", "attune, masking")
_SENT_AT_ONCE = 500
_WAIT_SECONDS = 60


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--records", type=int, default=60_000)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--cores", default="0,1", help="which both run on; the broker runs where it likes")
    arguments.add_argument("--write", action="store_true", help="put the figures into docs/measurements.md")
    arguments.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments.add_argument("--address", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.way:
        print(json.dumps(run(given.way, given.address, given.records)))
        return
    with tempfile.TemporaryDirectory(prefix="attune-bench-") as folder:
        broker = LocalBroker(Path(folder) / "kafka", free_port())
        broker.start(fetch_jars())
        try:
            measure(given, broker.address)
        finally:
            broker.stop()


def measure(given: argparse.Namespace, address: str) -> None:
    size = fill(address, given.records)
    print(f"{given.records:,} responses, {size / 1e6:.0f} MB")
    shared = "--address", address, "--records", str(given.records)
    found = in_turns(given, "bench.ingest_kafka", WAYS, *shared)
    publish(given, [*heading(given, size), *compared(given.records, found)])


def heading(given: argparse.Namespace, size: int) -> list[str]:
    cores = len(given.cores.split(","))
    return [
        "## Ingest from Kafka",
        "",
        f"`python -m bench.ingest_kafka`, {machine()}",
        f"{given.records:,} responses of {PROMPT_TOKENS} tokens in and {OUTPUT_TOKENS} out, {size / 1e6:.0f} MB, from",
        f"{KafkaSettings().partitions} partitions of a local broker to the lake on {cores} cores, {given.rounds}",
        "rounds in turns; medians with 95 % intervals. The bare loop: kafka-python's consumer and protobuf's decoder:",
        "it writes nothing. The broker and other work ran beside them: read the ratios.",
        "",
    ]


class OwnGroup(Cluster):
    """Who reads anew finds nothing of those before."""

    def group(self, reader: str) -> str:
        return f"{super().group(reader)}-{os.getpid()}"


def cluster_at(address: str) -> Cluster:
    return OwnGroup.of(KafkaSettings(servers=(address,)))


def fill(address: str, records: int) -> int:
    """Bytes of the records, which are sent as the shipper sends them."""
    cluster = cluster_at(address)
    create_topics(cluster, TopicRules.of(KafkaSettings()))
    chance = random.Random(1)
    producer = Producer(cluster)
    size = 0
    for start in range(0, records, _SENT_AT_ONCE):
        events = [response(number, chance) for number in range(start, min(records, start + _SENT_AT_ONCE))]
        messages = [
            Message(cluster.topic(RESPONSES), event.conversation_id.encode(), event.SerializeToString())
            for event in events
        ]
        size += sum(len(message.payload) for message in messages)
        for outcome in producer.send(messages):
            if outcome is not None:
                raise outcome
    producer.close()
    return size


def run(way: str, address: str, records: int) -> dict[str, float]:
    if way == WAYS[0]:
        seconds, used = run_bare(address, records)
    else:
        seconds, used = run_attune(address, records, masking=way != "attune")
    return {"seconds": seconds, "cpu_seconds": used, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def run_bare(address: str, records: int) -> tuple[float, float]:
    cluster = cluster_at(address)
    consumer = KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False)
    consumer.subscribe([cluster.topic(RESPONSES)])
    consumer.partitions_for_topic(cluster.topic(RESPONSES))
    began, used = time.perf_counter(), time.process_time()
    for number, record in enumerate(consumer, 1):
        event_pb2.ResponseEvent.FromString(record.value)
        if number == records:
            break
    taken = time.perf_counter() - began, time.process_time() - used
    consumer.close()
    return taken


def run_attune(address: str, records: int, *, masking: bool) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="attune-bench-") as folder:
        lake = Lake(Path(folder))
        log = KafkaLogReader(cluster_at(address), READER)
        guard = Guard(Scrubber.from_settings(PrivacySettings()) if masking else None)
        ingest = Ingest(log, lake, RESPONSES, batch_records=AggregatorSettings().batch_records, guard=guard)
        deadline = time.monotonic() + _WAIT_SECONDS
        while not log.ranges(RESPONSES) and time.monotonic() < deadline:
            pass
        began, used = time.perf_counter(), time.process_time()
        while ingest.poll():
            pass
        taken = time.perf_counter() - began, time.process_time() - used
        if lake.responses.count() != records:
            raise SystemExit(f"{lake.responses.count()} rows of {records}")
        log.close()
    return taken


if __name__ == "__main__":
    main()
