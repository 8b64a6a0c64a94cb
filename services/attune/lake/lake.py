"""The lake: the tables in one place."""

import tempfile
from pathlib import Path

from attune.lake.delta import HISTORY_HOURS, LakeTable
from attune.lake.place import Place
from attune.lake.tables import DEAD_LETTER, FEEDBACK, RESPONSES, SCHEMAS


class Lake:
    """The three tables, opened or made. Not thread-safe.

    Queries that need more than memory spill into the folder `spill`.
    """

    def __init__(self, place: Place, *, history_hours: int = HISTORY_HOURS, spill: Path | None = None) -> None:
        self.place = place
        self.spill = spill or spill_of(place)
        self.responses, self.feedback, self.dead_letter = (
            LakeTable(place / name, SCHEMAS[name], by_day=name != DEAD_LETTER, history_hours=history_hours)
            for name in (RESPONSES, FEEDBACK, DEAD_LETTER)
        )

    @property
    def tables(self) -> tuple[LakeTable, ...]:
        return self.responses, self.feedback, self.dead_letter

    def reload(self) -> None:
        for table in self.tables:
            table.reload()


def spill_of(place: Place) -> Path:
    """Where queries of it spill, where nobody says otherwise."""
    return place / ".spill" if isinstance(place, Path) else Path(tempfile.gettempdir()) / ".attune-spill"
