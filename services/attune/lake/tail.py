"""Following a table: the rows that came since, without the ones before."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from attune.errors import Unavailable
from attune.lake.delta import load_table, said_of
from attune.lake.place import Place

Positions = dict[tuple[str, int], int]
"""The next offset of each (log id, partition)."""

_ROWS_AT_ONCE = 2000
_POSITION = ("log_id", "log_partition", "log_offset")


@dataclass(frozen=True)
class TableTail:
    """A table, for one reader."""

    handle: DeltaTable

    @classmethod
    def open(cls, place: Place) -> "TableTail | None":
        """The newest version; none before the table was made. Raises Unavailable."""
        try:
            return cls(load_table(place))
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise Unavailable(f"{place} cannot be read: {said_of(error)}") from None

    @property
    def version(self) -> int:
        return int(self.handle.version())

    def renew(self) -> int:
        """Goes to the newest version, and says which it is. Raises Unavailable."""
        try:
            self.handle.update_incremental()
        except (DeltaError, OSError) as error:
            raise Unavailable(f"{self.handle.table_uri} cannot be read: {said_of(error)}") from None
        return self.version

    def rows_after(self, positions: Mapping[tuple[str, int], int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Rows at or after these positions and of sources that are not among them, in no order, piece by piece.

        Each piece has the columns of the position too. Files of which the table's log says that they hold nothing new
        are not read. Raises Unavailable.
        """
        wanted = [*_POSITION, *(name for name in columns if name not in _POSITION)]
        try:
            yield from (
                self.handle.to_pyarrow_dataset()
                .scanner(
                    columns=wanted,
                    filter=_is_new(positions),
                    batch_size=_ROWS_AT_ONCE,
                    batch_readahead=1,
                    fragment_readahead=1,
                )
                .to_batches()
            )
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise Unavailable(f"{self.handle.table_uri} cannot be read: {said_of(error)}") from None


def _is_new(positions: Mapping[tuple[str, int], int]) -> pc.Expression | None:
    """Written with inequalities alone: those Arrow compares with the least and greatest value of each file."""
    expression = None
    log, part, offset = (pc.field(name) for name in _POSITION)
    for (log_id, partition), following in positions.items():
        other = (log < log_id) | (log > log_id) | (part < partition) | (part > partition) | (offset >= following)
        expression = other if expression is None else expression & other
    return expression
