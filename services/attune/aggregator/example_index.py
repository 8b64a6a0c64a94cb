"""The part of the receipts' index that knows examples: in which datasets they are, and what they were made of."""

import sqlite3
from collections.abc import Sequence

EXAMPLES = """
CREATE TABLE examples (number INTEGER PRIMARY KEY, example_id TEXT UNIQUE);
CREATE TABLE contents (dataset INTEGER, example INTEGER, split TEXT, PRIMARY KEY (dataset, example)) WITHOUT ROWID;
CREATE INDEX contents_by_example ON contents (example);
CREATE TABLE example_feedback (feedback INTEGER, example INTEGER, PRIMARY KEY (feedback, example)) WITHOUT ROWID;
CREATE INDEX feedback_by_example ON example_feedback (example);
CREATE TABLE example_responses (response_id TEXT, example INTEGER, PRIMARY KEY (response_id, example)) WITHOUT ROWID;
CREATE INDEX responses_by_example ON example_responses (example);
"""

Row = tuple[str, str, Sequence[str] | None, Sequence[str] | None]
"""An example's id, its split, and the ids of its feedback and its responses."""

_NUMBER = "(SELECT number FROM examples WHERE example_id = ?)"
_ADD_FEEDBACK = f"INSERT OR IGNORE INTO example_feedback SELECT number, {_NUMBER} FROM feedback WHERE event_id = ?"


def add_examples(connection: sqlite3.Connection, dataset: int, rows: Sequence[Row]) -> None:
    """Of a dataset, by its number in the index; what is there already stays as it is."""
    connection.executemany("INSERT OR IGNORE INTO examples (example_id) VALUES (?)", [(row[0],) for row in rows])
    connection.executemany(
        f"INSERT OR IGNORE INTO contents VALUES (?, {_NUMBER}, ?)", [(dataset, row[0], row[1]) for row in rows]
    )
    connection.executemany(_ADD_FEEDBACK, [(row[0], one) for row in rows for one in row[2] or ()])
    connection.executemany(
        f"INSERT OR IGNORE INTO example_responses VALUES (?, {_NUMBER})",
        [(one, row[0]) for row in rows for one in row[3] or ()],
    )


def remove_examples(connection: sqlite3.Connection, dataset_id: str) -> None:
    """Of a dataset that is gone; those that are in no other go with it."""
    connection.execute(
        "DELETE FROM contents WHERE dataset = (SELECT number FROM datasets WHERE dataset_id = ?)", (dataset_id,)
    )
    for table in ("example_feedback", "example_responses"):
        connection.execute(f"DELETE FROM {table} WHERE example NOT IN (SELECT example FROM contents)")
    connection.execute("DELETE FROM examples WHERE number NOT IN (SELECT example FROM contents)")
