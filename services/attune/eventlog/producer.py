"""The writing side of Kafka: each batch is taken, or it is known what was not."""

import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kafka import KafkaProducer
from kafka import errors as kafka_errors
from kafka.producer.future import FutureRecordMetadata

from attune import metrics
from attune.errors import AttuneError, InvalidInput, NotFound, Unavailable
from attune.eventlog.cluster import Cluster, last_failure, translated

logger = logging.getLogger(__name__)

_LINGER_MS = 5
_BATCH_BYTES = 1 << 18
# A sound producer reports each record within its own limit; one that has not by then never will.
_PATIENCE_SECONDS = 2.0
_STOP_SECONDS = 5.0
_LOOK_SECONDS = 0.2
_RETRY_AFTER_SECONDS = 1.0
_FOR_GOOD = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.UnsupportedForMessageFormatError,
    kafka_errors.PolicyViolationError,
    kafka_errors.CorruptRecordError,
)


class Refused(InvalidInput):
    """The brokers do not take this record, and would not later."""


@dataclass(frozen=True)
class Message:
    """A record for Kafka; the topic by Kafka's name."""

    topic: str
    key: bytes
    payload: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


class Producer:
    """Sends batches, one after the other. A record may come twice, or late; it is not lost without being said.

    Without idempotence: a producer with it hangs for good once the brokers were frozen for longer than its time limit,
    and twice is harmless here. What is in memory is the batch being sent. One that does not report in time is thrown
    away for a new one. Not thread-safe.
    """

    def __init__(self, cluster: Cluster, stopping: threading.Event | None = None) -> None:
        """Once it is to stop it waits for the brokers no longer than some seconds."""
        self._cluster = cluster
        self._stopping = stopping or threading.Event()
        self._stop_at = math.inf
        self._producer: KafkaProducer | None = None

    def send(self, messages: Sequence[Message]) -> list[AttuneError | None]:
        """For each message what went wrong, or None when the brokers have it: Refused is for good, all else may pass.

        Takes at most the cluster's delivery time and some seconds.
        """
        if not messages:
            return []
        try:
            producer = self._opened()
        except AttuneError as error:
            return [error] * len(messages)
        began = time.monotonic()
        outcomes: list[AttuneError | FutureRecordMetadata | None] = []
        for message in messages:
            outcomes.append(self._hand_over(producer, message))
            if isinstance(outcomes[-1], AttuneError) and not isinstance(outcomes[-1], Refused):
                break  # the others would wait as long for the same
        deadline = began + self._cluster.delivery_seconds + self._cluster.request_seconds + _PATIENCE_SECONDS
        results = [self._settled(each, deadline) for each in outcomes]
        if any(isinstance(result, _Stuck) for result in results):
            self._replace()
        unsent = [Unavailable("not sent: one before it was not taken")] * (len(messages) - len(results))
        return [*results, *unsent]

    def close(self) -> None:
        self._abandon()

    def _opened(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = self._cluster.make(
                KafkaProducer,
                acks="all",
                enable_idempotence=False,
                max_in_flight_requests_per_connection=1,  # else a record that is tried again comes after later ones
                delivery_timeout_ms=int(self._cluster.delivery_seconds * 1000) + _LINGER_MS,
                max_block_ms=self._cluster.request_ms,
                max_request_size=self._cluster.max_message_bytes,
                linger_ms=_LINGER_MS,
                batch_size=_BATCH_BYTES,
                allow_auto_create_topics=False,
                metadata_max_age_ms=30_000,
                metrics_enabled=False,
            )
        return self._producer

    def _hand_over(self, producer: KafkaProducer, message: Message) -> AttuneError | FutureRecordMetadata:
        try:
            return producer.send(message.topic, message.payload, message.key, headers=list(message.headers))
        except kafka_errors.KafkaTimeoutError as error:
            if last_failure():
                return _outcome(error)
            return NotFound(f"Kafka has no topic {message.topic}; `attune topics create` makes it")
        except kafka_errors.KafkaError as error:
            return _outcome(error)
        except ValueError as error:  # topics and partitions that metadata lost in between
            return Unavailable(f"Kafka cannot be used now: {error}")

    def _settled(self, sent: AttuneError | FutureRecordMetadata | None, deadline: float) -> AttuneError | None:
        if not isinstance(sent, FutureRecordMetadata):
            return sent
        while True:
            try:
                sent.get(_LOOK_SECONDS)
                return None
            except kafka_errors.KafkaError:
                if sent.failed():
                    return _outcome(sent.exception)
            now = time.monotonic()
            if self._stopping.is_set():
                self._stop_at = min(self._stop_at, now + _STOP_SECONDS)
            if now > min(deadline, self._stop_at):
                return _Stuck("Kafka did not take the record in time", retry_after_seconds=_RETRY_AFTER_SECONDS)

    def _replace(self) -> None:
        metrics.PRODUCERS_REPLACED.inc()
        logger.error("the Kafka producer makes no progress and is replaced")
        self._abandon()

    def _abandon(self) -> None:
        """Not waited for: closing one that hangs never returns."""
        if self._producer is not None:
            threading.Thread(target=_close, args=(self._producer,), daemon=True).start()
            self._producer = None


def _close(producer: KafkaProducer) -> None:
    try:
        producer.close(timeout=0)
    except kafka_errors.KafkaError:  # it waits for what hangs, before it ends its thread
        producer._sender.force_close()
        producer._closed = True


class _Stuck(Unavailable):
    """The producer did not report."""


def _outcome(error: kafka_errors.KafkaError) -> AttuneError:
    if isinstance(error, _FOR_GOOD):
        return Refused(f"Kafka refused the record: {type(error).__name__}")
    return translated(error)
