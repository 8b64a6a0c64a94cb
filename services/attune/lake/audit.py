"""Compares what clients were told with what the lake holds: every acknowledged event is in it exactly once.

    python -m attune.lake.audit --data attune-data --responses responses.txt --feedback feedback.txt

Each file has one id a line: response ids, and feedback (event) ids. Exits 0 when all are there once, else 1.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from deltalake.exceptions import TableNotFoundError

from attune.lake.delta import load_table
from attune.lake.place import Place
from attune.lake.tables import FEEDBACK, RESPONSES


@dataclass(frozen=True)
class Audit:
    """Ids that were acknowledged and are absent, and ids that stand in a table more than once."""

    acknowledged: int
    missing: tuple[str, ...]
    repeated: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.missing and not self.repeated


def count_ids(lake: Place, table: str, column: str) -> Counter[str]:
    """How many rows of the table, as ingested, have each id."""
    try:
        ids = load_table(lake / table).to_pyarrow_table(columns=[column])
    except TableNotFoundError:
        return Counter()
    return Counter(ids[column].to_pylist())


def audit(lake: Place, response_ids: Iterable[str], feedback_ids: Iterable[str]) -> Audit:
    """Response ids are those of final messages, feedback ids those of feedback replies."""
    acknowledged, missing, repeated = 0, [], []
    for table, column, told in (
        (RESPONSES, "response_id", set(response_ids)),
        (FEEDBACK, "event_id", set(feedback_ids)),
    ):
        counts = count_ids(lake, table, column)
        acknowledged += len(told)
        missing += sorted(told - counts.keys())
        repeated += sorted(name for name, count in counts.items() if count > 1)
    return Audit(acknowledged, tuple(missing), tuple(repeated))


def main() -> int:
    parser = argparse.ArgumentParser(description="Is every acknowledged event in the lake exactly once?")
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--responses", type=Path, required=True, help="acknowledged response ids, one a line")
    parser.add_argument("--feedback", type=Path, required=True, help="acknowledged feedback ids, one a line")
    arguments = parser.parse_args()
    found = audit(
        arguments.data / "lake",
        arguments.responses.read_text().split(),
        arguments.feedback.read_text().split(),
    )
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0 if found.passed else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Not sys.exit: threads with which Arrow has read the tables may abort an interpreter that is being taken down.
    os._exit(status)
