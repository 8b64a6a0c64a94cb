"""The lake: the tables in one folder."""

from pathlib import Path

from attune.lake.delta import LakeTable
from attune.lake.tables import DEAD_LETTER, FEEDBACK, RESPONSES, SCHEMAS


class Lake:
    """The three tables, opened or made. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.responses = LakeTable(folder / RESPONSES, SCHEMAS[RESPONSES])
        self.feedback = LakeTable(folder / FEEDBACK, SCHEMAS[FEEDBACK])
        self.dead_letter = LakeTable(folder / DEAD_LETTER, SCHEMAS[DEAD_LETTER])

    def reload(self) -> None:
        for table in (self.responses, self.feedback, self.dead_letter):
            table.reload()
