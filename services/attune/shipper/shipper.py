"""From the spool to Kafka, in order, each record at least once."""

import logging
import threading
from collections.abc import Callable

from google.protobuf.message import DecodeError

from attune import metrics
from attune.errors import AttuneError, Unavailable
from attune.eventlog import FEEDBACK, RESPONSES, TOPICS, EventReader, Record
from attune.eventlog.cluster import Cluster
from attune.eventlog.positions import SHIPPER
from attune.eventlog.producer import Message, Producer, Refused
from attune.eventlog.refused import RefusedRecords
from attune.v1 import event_pb2

logger = logging.getLogger(__name__)

# All that is in memory at a time, a batch being at least one record.
_BATCH_BYTES = 4 << 20
_EVENT_OF = {RESPONSES: event_pb2.ResponseEvent, FEEDBACK: event_pb2.FeedbackEvent}


class Shipper:
    """Moves batches of each topic; a record is done when the brokers said that they have it.

    Then the spool may trim it. A batch that was taken in part goes on at the first record that was not, so some may
    come twice: whoever reads knows them by their event ids. A record that is refused for good, also alone, is set
    aside, and the ones behind it go on.
    """

    def __init__(
        self,
        spool: EventReader,
        cluster: Cluster,
        refused: RefusedRecords,
        *,
        batch_records: int,
        stopping: threading.Event | None = None,
        reached: Callable[[str], None] = lambda _step: None,
    ) -> None:
        """Once `stopping` is set it waits for the brokers no longer than some seconds.

        `reached` is told each step that is done; crash tests end the process there.
        """
        self._spool = spool
        self._cluster = cluster
        self._producer = Producer(cluster, stopping)
        self._refused = refused
        self._batch_records = batch_records
        self._reached = reached

    def poll(self) -> int:
        """At most one batch of each topic; how many records are done with. Raises Unavailable or NotFound when Kafka
        took none or not all, after it noted what was taken."""
        done, failure = 0, None
        for topic in TOPICS:
            taken, error = self._ship(topic)
            done, failure = done + taken, failure or error
        if failure is not None:
            raise failure
        return done

    def close(self) -> None:
        self._producer.close()

    def _ship(self, topic: str) -> tuple[int, AttuneError | None]:
        log_id = self._spool.log_id(topic)
        held = self._spool.range(topic, 0)
        # Nothing was trimmed that this reader still needed, but for a time in which it was not configured.
        first = max(held.first, self._spool.positions(SHIPPER).get((topic, 0), 0))
        records = self._spool.read(topic, 0, first, self._batch_records, _BATCH_BYTES) if first < held.next else []
        if not records or self._spool.log_id(topic) != log_id:
            return 0, None
        self._reached("read")
        outcomes = self._producer.send([self._message(record) for record in records])
        self._reached("sent")
        done, failure = 0, None
        for record, outcome in zip(records, outcomes, strict=True):
            failure = self._set_aside(log_id, record) if isinstance(outcome, Refused) else outcome
            if failure is not None:
                metrics.SHIPPER_FAILURES.labels(topic).inc()
                break
            done += 1
        if done:
            self._spool.commit(SHIPPER, {(topic, 0): records[done - 1].offset + 1})
            self._reached("positioned")
            metrics.SHIPPED.labels(topic).inc(done)
        return done, failure

    def _message(self, record: Record) -> Message:
        return Message(self._cluster.topic(record.topic), record.key, record.payload, _headers(record))

    def _set_aside(self, log_id: str, record: Record) -> AttuneError | None:
        """Sent once more by itself: in a batch the brokers refuse it for its neighbours."""
        (outcome,) = self._producer.send([self._message(record)])
        if not isinstance(outcome, Refused):
            return outcome
        try:
            self._refused.add(log_id, record, outcome.message)
        except Unavailable as error:
            return error
        self._reached("set aside")
        metrics.SHIPPER_REFUSED.labels(record.topic).inc()
        logger.error(
            "Kafka refused a record for good; it is kept beside the spool",
            extra={"topic": record.topic, "offset": record.offset, "reason": outcome.message},
        )
        return None


def _headers(record: Record) -> tuple[tuple[str, bytes], ...]:
    """None for bytes that are no event: whoever reads sets them aside."""
    event = _EVENT_OF[record.topic]()
    try:
        event.ParseFromString(record.payload)
    except DecodeError:
        return ()
    header = event.header
    return (("event_id", header.event_id.encode()), ("schema_version", str(header.schema_version).encode()))
