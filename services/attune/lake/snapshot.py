"""Reading the lake with SQL, at one version of each table.

responses_rows, feedback_rows    every row, as ingested
responses, feedback              what recipes read: of rows with one event_id the first; of requests that two replicas
                                 answered, because a client sent them again elsewhere, the answers made first
conversations                    of these: one row for each conversation with a persona

A request was sent again when tenant, client_request_id and prompt are the same within a day; answers that were aborted
do not count as answers. What is left of the others is in responses_repeated.

All SQL here and in recipes is DuckDB's; what Spark runs is made from it (lake/spark.py).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import duckdb
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from attune.errors import NotFound, Unavailable
from attune.lake.damage import check_undamaged
from attune.lake.delta import load_table
from attune.lake.lake import Lake, spill_of
from attune.lake.place import Place
from attune.lake.tables import FEEDBACK, RESPONSES, SCHEMAS

# Hardly ever is there any, so who is looked at closely is found first, by hashes: they take little memory.
VIEWS = """
CREATE OR REPLACE TEMP VIEW {name}_doubled AS
    SELECT log_id, log_partition, log_offset FROM (
        SELECT
            log_id, log_partition, log_offset,
            row_number() OVER (PARTITION BY event_id ORDER BY log_id, log_partition, log_offset) AS place
        FROM {name}_rows
        WHERE hash(event_id) IN (SELECT hash(event_id) FROM {name}_rows GROUP BY hash(event_id) HAVING count(*) > 1)
    )
    WHERE place > 1;
"""
REPEATED = """
CREATE OR REPLACE TEMP VIEW responses_repeated AS
    WITH twice AS (
        SELECT hash(tenant, client_request_id) AS request FROM responses_rows
        WHERE client_request_id <> '' AND source = 'served'
        GROUP BY hash(tenant, client_request_id)
        HAVING min(hash(request_group)) <> max(hash(request_group))
    ),
    answered AS (
        SELECT tenant, client_request_id, prompt_token_ids, request_group, min(created_unix_ms) AS made
        FROM responses_rows
        WHERE
            client_request_id <> '' AND source = 'served'
            AND hash(tenant, client_request_id) IN (SELECT request FROM twice)
        GROUP BY tenant, client_request_id, prompt_token_ids, request_group
        HAVING NOT bool_or(finish_reason = 'aborted')
    ),
    placed AS (
        SELECT *, lag(made) OVER same AS before, first_value(request_group) OVER same AS counts
        FROM answered
        WINDOW same AS (PARTITION BY tenant, client_request_id, prompt_token_ids ORDER BY made, request_group)
    )
    SELECT tenant, request_group, counts FROM placed WHERE made - before <= {within_ms};
"""
# What a row of a table may not share with any of a view's in order to count.
_BY_POSITION = ("log_id", "log_partition", "log_offset")
_NOT_COUNTING: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    FEEDBACK: {"feedback_doubled": _BY_POSITION},
    RESPONSES: {
        "responses_doubled": _BY_POSITION,
        "responses_repeated": ("tenant", "request_group"),
    },
}
_CONVERSATIONS = """
CREATE OR REPLACE TEMP VIEW conversations AS
    SELECT c.*, coalesce(f.feedback, 0) AS feedback
    FROM (
        SELECT
            tenant, persona, conversation_id, min(end_user) AS end_user, count(*) AS responses, max(turn) AS turns,
            min(created_unix_ms) AS began_unix_ms, max(created_unix_ms) AS ended_unix_ms
        FROM responses WHERE conversation_id <> '' GROUP BY tenant, persona, conversation_id
    ) AS c
    LEFT JOIN (
        SELECT tenant, conversation_id, count(*) AS feedback
        FROM feedback WHERE conversation_id <> '' GROUP BY tenant, conversation_id
    ) AS f ON f.tenant = c.tenant AND f.conversation_id = c.conversation_id;
"""
SENT_AGAIN_WITHIN_MS = 86_400_000
"""How far apart two answers to a request may be that a client sent to two replicas."""
SEARCHES = tuple(name for searches in _NOT_COUNTING.values() for name in searches)
"""The views that take a search through a whole table."""

_BATCH_ROWS = 10_000


def counting_views(searches: Mapping[str, str]) -> str:
    """Statements for `feedback`, `responses` and `conversations`, with what each search found under another name;
    without those that found nothing, which is nearly always.
    """
    script = []
    for name, shared in _NOT_COUNTING.items():
        joins = [
            f"ANTI JOIN {searches[search]} AS {search} ON "
            + " AND ".join(f"r.{column} = {search}.{column}" for column in columns)
            for search, columns in shared.items()
            if search in searches
        ]
        script.append(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT r.* FROM {name}_rows AS r {' '.join(joins)};")
    return "\n".join([*script, _CONVERSATIONS])


class Source(Protocol):
    """SQL over one version of each table, whatever runs it."""

    @property
    def versions(self) -> Mapping[str, int]: ...

    def define(self, name: str, table: pa.Table) -> None:
        """Makes a small table one that SQL can read."""

    def rows(self, query: str, arguments: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Raises Unavailable when the query cannot be run (no memory, no disk, a file that cannot be read)."""

    def run(self, script: str, arguments: Mapping[str, Any]) -> pa.RecordBatchReader:
        """Runs statements, of which the last one takes the arguments, and gives what it finds, piece by piece.

        Raises DataLoss when the tables are damaged.
        """


@dataclass(frozen=True)
class Snapshot:
    """A Source in this process: DuckDB, which spills to disk what does not fit into its memory.

    `check` raises DataLoss when a file of the tables is not as it was written.
    """

    connection: duckdb.DuckDBPyConnection
    versions: Mapping[str, int]
    check: Callable[[], None]
    _checked: list[bool] = field(default_factory=list)

    def define(self, name: str, table: pa.Table) -> None:
        self.connection.register(name, table)

    def batches(self, query: str, arguments: Mapping[str, Any], rows: int) -> Iterator[pa.RecordBatch]:
        """As `table`, piece by piece."""
        with _reported():
            yield from self.connection.sql(query, params=dict(arguments)).to_arrow_reader(rows)

    def rows(self, query: str, arguments: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        with _explained(self.check):
            return self.connection.execute(query, dict(arguments or {})).fetchall()

    def run(self, script: str, arguments: Mapping[str, Any]) -> pa.RecordBatchReader:
        if not self._checked:
            self.check()
            self._checked.append(True)
        with _explained(self.check):
            self._search_once()
            *statements, query = self.connection.extract_statements(script)
            for statement in statements:
                self.connection.execute(statement)
            found = self.connection.sql(query.query, params=dict(arguments)).to_arrow_reader(_BATCH_ROWS)
        return pa.RecordBatchReader.from_batches(found.schema, _batches(found))

    def _search_once(self) -> None:
        """Remembers which rows do not count, instead of looking for them in each query."""
        found = {}
        for name in SEARCHES:
            self.connection.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name}_found AS SELECT * FROM {name}")
            if self.connection.execute(f"SELECT 1 FROM {name}_found LIMIT 1").fetchone():
                found[name] = f"{name}_found"
        self.connection.execute(counting_views(found))


@contextlib.contextmanager
def open_snapshot(lake: Lake, threads: int = 2, memory_mib: int = 1024) -> Iterator[Snapshot]:
    """The versions that the lake's handles stand on."""
    handles = {RESPONSES: lake.responses.handle, FEEDBACK: lake.feedback.handle}
    with _snapshot(lake.place, handles, lake.spill, threads, memory_mib) as snapshot:
        yield snapshot


@contextlib.contextmanager
def read_snapshot(place: Place, threads: int = 2, memory_mib: int = 1024) -> Iterator[Snapshot]:
    """The newest versions of a lake that another process writes. Raises NotFound when there is none."""
    with _snapshot(place, newest_handles(place), spill_of(place), threads, memory_mib) as snapshot:
        yield snapshot


def newest_handles(place: Place) -> dict[str, DeltaTable]:
    """Of the tables that recipes read. Raises NotFound."""
    try:
        return {name: load_table(place / name) for name in (RESPONSES, FEEDBACK)}
    except TableNotFoundError:
        raise NotFound("there is no lake yet: nothing was ingested") from None


@contextlib.contextmanager
def _snapshot(
    place: Place, handles: Mapping[str, DeltaTable], spill: Path, threads: int, memory_mib: int
) -> Iterator[Snapshot]:
    connection = duckdb.connect(
        config={
            "threads": threads,
            "memory_limit": f"{memory_mib}MiB",  # beyond it, it spills
            "preserve_insertion_order": False,
            # Of an outer join the right side is held in memory: recipes put the few rows there, and the responses left.
            "disabled_optimizers": "build_side_probe_side",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "temp_directory": str(spill),
        }
    )
    check = functools.partial(check_undamaged, [(place / name, handle) for name, handle in handles.items()])
    try:
        with _explained(check):
            for name, handle in handles.items():
                _define_rows(connection, name, handle)
                connection.execute(VIEWS.format(name=name))
            connection.execute(REPEATED.format(within_ms=SENT_AGAIN_WITHIN_MS))
            connection.execute(counting_views({name: name for name in SEARCHES}))
        versions = {name: int(handle.version()) for name, handle in handles.items()}
        yield Snapshot(connection, versions, check)
    finally:
        connection.close()


def _define_rows(connection: duckdb.DuckDBPyConnection, name: str, handle: DeltaTable) -> None:
    """The table's own files, read by DuckDB; columns that none of them knows yet are null.

    What is in an object store is read through Arrow, which takes more memory: DuckDB would have to download a part.
    """
    files = handle.file_uris()
    if any("://" in file for file in files):
        connection.register(f"{name}_rows", handle.to_pyarrow_dataset())
        return
    connection.register(f"{name}_empty", SCHEMAS[name].empty_table())
    written = ""
    if files:
        listed = ", ".join(f"'{file.replace(chr(39), chr(39) * 2)}'" for file in files)
        written = f"UNION ALL BY NAME SELECT * FROM read_parquet([{listed}], union_by_name = true)"
    connection.execute(f"CREATE TEMP VIEW {name}_rows AS SELECT * FROM {name}_empty {written}")


def _batches(found: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    with _reported():
        yield from found


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        # What comes up while rows are fetched has gone through Arrow, which keeps of an error's kind only its text.
        if isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory Error" in str(error):
            raise Unavailable(
                "the lake cannot be queried: it takes more memory than it may; raise aggregator.build_memory_mib"
            ) from None
        raise Unavailable(f"the lake cannot be queried: {error}") from error


@contextlib.contextmanager
def _explained(check: Callable[[], None]) -> Iterator[None]:
    """What cannot be read may be damaged: then that is said."""
    try:
        with _reported():
            yield
    except Unavailable:
        check()
        raise
