"""A real Kafka broker for the whole run, and topics of its own for each test."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from attune.errors import FailedPrecondition
from attune.eventlog.broker import LocalBroker, fetch_jars, free_port
from attune.eventlog.cluster import Cluster
from attune.eventlog.topics import TopicRules, create_topics


@contextmanager
def run_broker(folder: Path, *, port: int = 0, **properties: str) -> Iterator[LocalBroker]:
    """Skips the test where Java or Maven is missing; in CI that is a failure."""
    try:
        jars = fetch_jars()
    except FailedPrecondition as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(missing.message)
    broker = LocalBroker(folder, port or free_port(), properties=properties)
    broker.start(jars)
    try:
        yield broker
    finally:
        broker.kill()


def cluster_on(broker: LocalBroker, partitions: int = 1, **changes: object) -> Cluster:
    """A cluster with topics that no other test has; impatient, so that tests of failures are quick."""
    cluster = Cluster((broker.address,), f"t{uuid.uuid4().hex[:12]}.", 2, 3, 1 << 20)
    cluster = replace(cluster, **changes)  # type: ignore[arg-type]
    create_topics(replace(cluster, request_seconds=10), TopicRules(partitions, None, 1, 1))
    return cluster
