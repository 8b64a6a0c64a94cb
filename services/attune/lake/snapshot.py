"""Reading the lake with SQL, at one version of each table.

responses_rows, feedback_rows    every row, as ingested
responses, feedback              what recipes read: of rows with one event_id the first; of requests that two replicas
                                 answered, because a client sent them again elsewhere, the answers made first

A request was sent again when tenant, client_request_id and prompt are the same within a day; answers that were aborted
do not count as answers. What is left of the others is in responses_repeated.
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
CREATE TEMP VIEW {name}_first AS
    SELECT r.* FROM {name}_rows AS r
    LEFT JOIN (
        SELECT event_id, min({position}) AS first FROM {name}_rows GROUP BY event_id HAVING count(*) > 1
    ) AS repeated USING (event_id)
    WHERE repeated.first IS NULL OR repeated.first = {position};
"""
# Hardly ever is there any, so who is looked at closely is found first.
_ANSWERED_ONCE = """
CREATE TEMP VIEW responses_repeated AS
    WITH twice AS (
        SELECT tenant, client_request_id FROM responses_rows
        WHERE client_request_id <> '' AND source = 'served'
        GROUP BY tenant, client_request_id HAVING min(request_group) <> max(request_group)
    ),
    answered AS (
        SELECT r.tenant, r.client_request_id, r.prompt_token_ids, r.request_group, min(r.created_unix_ms) AS made
        FROM responses_rows AS r JOIN twice USING (tenant, client_request_id)
        WHERE r.source = 'served'
        GROUP BY r.tenant, r.client_request_id, r.prompt_token_ids, r.request_group
        HAVING NOT bool_or(r.finish_reason = 'aborted')
    ),
    placed AS (
        SELECT *, lag(made) OVER same AS before, first_value(request_group) OVER same AS counts
        FROM answered
        WINDOW same AS (PARTITION BY tenant, client_request_id, prompt_token_ids ORDER BY made, request_group)
    )
    SELECT tenant, request_group, counts FROM placed WHERE made - before <= {within_ms};
CREATE TEMP VIEW responses AS
    SELECT * FROM responses_first ANTI JOIN responses_repeated USING (tenant, request_group);
CREATE TEMP VIEW feedback AS SELECT * FROM feedback_first;
"""
SENT_AGAIN_WITHIN_MS = 86_400_000
"""How far apart two answers to a request may be that a client sent to two replicas."""
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

    def batches(self, query: str, arguments: Mapping[str, Any], rows: int) -> Iterator[pa.RecordBatch]:
        """As `table`, piece by piece."""
        with _reported():
            yield from self.connection.sql(query, params=dict(arguments)).to_arrow_reader(rows)

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
        connection.execute(_ANSWERED_ONCE.format(within_ms=SENT_AGAIN_WITHIN_MS))
        yield Snapshot(connection, {name: int(handle.version()) for name, handle in handles.items()})
    finally:
        connection.close()


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise Unavailable(f"the lake cannot be queried: {error}") from error
