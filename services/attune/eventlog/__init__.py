"""The event log: what chat and feedback append to, and the lake is filled from."""

from attune.eventlog.log import FEEDBACK, RESPONSES, TOPICS, Depth, EventLog, EventReader, Range, Record, Reservation
from attune.eventlog.opening import open_when_there
from attune.eventlog.sqlite import SqliteLog, SqliteLogReader

__all__ = [
    "FEEDBACK",
    "RESPONSES",
    "TOPICS",
    "Depth",
    "EventLog",
    "EventReader",
    "Range",
    "Record",
    "Reservation",
    "SqliteLog",
    "SqliteLogReader",
    "open_when_there",
]
