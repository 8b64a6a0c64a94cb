"""Reading the lake with SQL, at one version of each table.

responses_rows, feedback_rows    every row, as ingested
responses, feedback              the same with the first row of each event_id only: what recipes read
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from attune.errors import Unavailable
from attune.lake.lake import Lake
from attune.lake.tables import FEEDBACK, RESPONSES

_FIRST_OF_EACH_ID = """
CREATE TEMP VIEW {name} AS
    SELECT r.* FROM {name}_rows AS r
    LEFT JOIN (
        SELECT event_id, min({position}) AS first FROM {name}_rows GROUP BY event_id HAVING count(*) > 1
    ) AS repeated USING (event_id)
    WHERE repeated.first IS NULL OR repeated.first = {position};
"""
_POSITION = "struct_pack(id := log_id, part := log_partition, at := log_offset)"


@dataclass(frozen=True)
class Snapshot:
    """SQL over one version of each table."""

    connection: duckdb.DuckDBPyConnection
    versions: Mapping[str, int]

    def table(self, query: str, arguments: Mapping[str, Any] | None = None) -> pa.Table:
        """Raises Unavailable when the query cannot be run (no memory, no disk, a file that cannot be read)."""
        with _reported():
            return self.connection.sql(query, params=dict(arguments or {})).to_arrow_table()

    def rows(self, query: str, arguments: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        with _reported():
            return self.connection.execute(query, dict(arguments or {})).fetchall()


@contextmanager
def open_snapshot(lake: Lake, threads: int = 2) -> Iterator[Snapshot]:
    """The versions that the lake's handles stand on."""
    handles: dict[str, DeltaTable] = {RESPONSES: lake.responses.handle, FEEDBACK: lake.feedback.handle}
    connection = duckdb.connect(
        config={
            "threads": threads,
            "memory_limit": "2GB",  # beyond it, it spills
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "temp_directory": str(lake.folder / ".spill"),
        }
    )
    try:
        for name, handle in handles.items():
            connection.register(f"{name}_rows", handle.to_pyarrow_dataset())
            with _reported():
                connection.execute(_FIRST_OF_EACH_ID.format(name=name, position=_POSITION))
        yield Snapshot(connection, {name: int(handle.version()) for name, handle in handles.items()})
    finally:
        connection.close()


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise Unavailable(f"the lake cannot be queried: {error}") from error
