"""What receipts are answered from: `receipts.sqlite`, a cache of who said what and where it went.

Made of the lake, the datasets and the registry, and made anew from them when it is missing or damaged; nothing is kept
here alone. It holds no text of anybody's. Any number of processes may keep one file up to date: what is added twice is
there once.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attune.aggregator.example_index import EXAMPLES, add_examples, remove_examples
from attune.errors import AttuneError, DataLoss, NotFound, Unavailable
from attune.lake.dataset import open_dataset
from attune.lake.left_out import LeftOut, list_left_out
from attune.lake.place import Place
from attune.lake.tables import FEEDBACK, RESPONSES
from attune.lake.tail import Positions, TableTail
from attune.registry.policies import Registry

logger = logging.getLogger(__name__)

_FORMAT = 2
_ROWS_AT_ONCE = 5000
_BUSY_SECONDS = 10.0

_SCHEMA = """
CREATE TABLE responses (
    event_id TEXT PRIMARY KEY, response_id TEXT, tenant TEXT, persona TEXT, policy_id TEXT, end_user TEXT, source TEXT,
    finish_reason TEXT, request_group TEXT, client_request_id TEXT, prompt BLOB, created_unix_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX responses_by_id ON responses (response_id);
CREATE INDEX responses_by_policy ON responses (policy_id, tenant);
CREATE INDEX responses_by_request ON responses (tenant, client_request_id) WHERE client_request_id <> '';
CREATE TABLE feedback (
    number INTEGER PRIMARY KEY, event_id TEXT UNIQUE, tenant TEXT, response_id TEXT, conversation_id TEXT, persona TEXT,
    end_user TEXT, author TEXT, kind TEXT, name TEXT, revision INTEGER, retracted INTEGER, created_unix_ms INTEGER,
    client_feedback_id TEXT, log_id TEXT, log_partition INTEGER, log_offset INTEGER
);
CREATE INDEX feedback_by_key ON feedback (tenant, response_id, kind, name, author, end_user, conversation_id);
CREATE INDEX feedback_by_client ON feedback (tenant, client_feedback_id) WHERE client_feedback_id <> '';
CREATE TABLE ranked (response_id TEXT, feedback INTEGER, PRIMARY KEY (response_id, feedback)) WITHOUT ROWID;
CREATE INDEX ranked_by_feedback ON ranked (feedback);
CREATE TABLE datasets (
    number INTEGER PRIMARY KEY, dataset_id TEXT UNIQUE, tenant TEXT, persona TEXT, recipe TEXT,
    created_unix_ms INTEGER, whole INTEGER
);
CREATE TABLE uses (feedback INTEGER, dataset INTEGER, split TEXT, PRIMARY KEY (feedback, dataset)) WITHOUT ROWID;
CREATE TABLE policies (
    policy_id TEXT PRIMARY KEY, tenant TEXT, persona TEXT, parent_policy_id TEXT, created_unix_ms INTEGER,
    passed INTEGER
) WITHOUT ROWID;
CREATE INDEX policies_by_parent ON policies (parent_policy_id);
CREATE TABLE policy_datasets (
    dataset_id TEXT, policy_id TEXT, PRIMARY KEY (dataset_id, policy_id)
) WITHOUT ROWID;
CREATE INDEX policy_datasets_by_policy ON policy_datasets (policy_id);
CREATE TABLE builds (number INTEGER PRIMARY KEY, scope TEXT UNIQUE, recipe TEXT, stamp TEXT);
CREATE TABLE left_out (
    feedback INTEGER, build INTEGER, reason TEXT, stamp TEXT, PRIMARY KEY (feedback, build, reason)
) WITHOUT ROWID;
CREATE TABLE positions (
    lake TEXT, log_id TEXT, log_partition INTEGER, following INTEGER, PRIMARY KEY (lake, log_id, log_partition)
) WITHOUT ROWID;
"""

_RESPONSE_COLUMNS = (
    "event_id", "response_id", "tenant", "persona", "policy_id", "end_user", "source", "finish_reason",
    "request_group", "client_request_id",
)  # fmt: skip
_FEEDBACK_COLUMNS = (
    "event_id", "tenant", "response_id", "conversation_id", "persona", "end_user", "author", "kind", "name",
    "revision", "retracted", "created_unix_ms", "client_feedback_id", "log_id", "log_partition", "log_offset",
)  # fmt: skip
_ADD_RESPONSE = f"""
INSERT OR IGNORE INTO responses ({", ".join(_RESPONSE_COLUMNS)}, prompt, created_unix_ms)
VALUES ({", ".join("?" * (len(_RESPONSE_COLUMNS) + 2))})
"""
# Of rows with one event id the first counts, as in the lake's views.
_ADD_FEEDBACK = f"""
INSERT INTO feedback ({", ".join(_FEEDBACK_COLUMNS)}) VALUES ({", ".join("?" * len(_FEEDBACK_COLUMNS))})
ON CONFLICT (event_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _FEEDBACK_COLUMNS[1:])}
WHERE (excluded.log_id, excluded.log_partition, excluded.log_offset) < (log_id, log_partition, log_offset)
"""
_ADD_RANKED = "INSERT OR IGNORE INTO ranked SELECT ?, number FROM feedback WHERE event_id = ?"
# It may stand in several examples of a dataset: that policies learn from one of them says more.
_ADD_USE = """
INSERT INTO uses SELECT number, ?, ? FROM feedback WHERE event_id = ?
ON CONFLICT DO UPDATE SET split = max(split, excluded.split)
"""
_EXAMPLE_COLUMNS = ("example_id", "split", "feedback_ids", "response_ids")
_ADD_LEFT_OUT = "INSERT OR REPLACE INTO left_out SELECT number, ?, ?, ? FROM feedback WHERE event_id = ?"


class ReceiptIndex:
    """Keeps the file up to date (`update`, one thread) and reads it (`reading`, any thread)."""

    def __init__(self, data: Path, lake: Place, registry: Registry) -> None:
        self._file = data / "receipts.sqlite"
        self._lake = lake
        self._datasets = data / "datasets"
        self._registry = registry
        self._tails: dict[str, TableTail] = {}
        self._versions: dict[str, int] = {}
        self._complaints: set[str] = set()
        self._ready = threading.Event()
        self._updating = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether everything that was there at the start is in it."""
        return self._ready.is_set()

    def erase(self, response_events: Collection[str], feedback_ids: Collection[str]) -> int:
        """Deletes what is known of these events, with nothing of it left in the file; says how many rows there were.

        To be called when the lake has them no more. Raises Unavailable; then it is to be called again.
        """
        with self._updating, contextlib.closing(_connect(f"{self._file.as_uri()}?mode=rwc")) as connection:
            try:
                if not connection.execute("PRAGMA user_version").fetchone()[0]:
                    return 0
                with _transaction(connection):
                    erased = _erase(connection, response_events, feedback_ids)
                connection.execute("VACUUM")
                busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.DatabaseError as error:
                raise Unavailable(f"the receipts' index cannot be written: {error}", retry_after_seconds=1) from None
        if busy:
            raise Unavailable("receipts are being read; old pages of their index cannot go yet", retry_after_seconds=1)
        return erased

    def update(self, stopping: threading.Event) -> None:
        """Takes in what is new, in small transactions; whatever stops it, the next call goes on.

        Raises an AttuneError when something cannot be read; a file that is damaged itself is made anew.
        """
        try:
            with self._updating, self._open() as connection:
                # What a dataset names is in the lake before the dataset is there.
                datasets, left_out = self._dataset_names(), list_left_out(self._datasets)
                for name in (RESPONSES, FEEDBACK):
                    self._follow(connection, name, stopping)
                self._add_datasets(connection, datasets, stopping)
                self._add_left_out(connection, left_out, stopping)
                self._add_policies(connection)
        except sqlite3.OperationalError as error:
            raise Unavailable(f"{self._file} cannot be written: {error}") from None
        except sqlite3.DatabaseError as error:
            logger.error("the receipts' index is damaged and is made anew", extra={"reason": str(error)})
            self._forget()
            raise Unavailable("the receipts' index is made anew", retry_after_seconds=1) from None
        if not stopping.is_set():
            self._ready.set()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent state. Raises Unavailable before the first update is through, or when there is no index."""
        if not self.ready:
            raise Unavailable("receipts are not ready yet", retry_after_seconds=1)
        try:
            with contextlib.closing(_connect(f"{self._file.as_uri()}?mode=ro")) as connection:
                connection.execute("BEGIN")
                yield connection
        except sqlite3.DatabaseError as error:
            logger.error("the receipts' index cannot be read", extra={"reason": str(error)})
            raise Unavailable("receipts cannot be read at the moment", retry_after_seconds=1) from None

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_connect(f"{self._file.as_uri()}?mode=rwc")) as connection:
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, _FORMAT):
                raise sqlite3.DatabaseError(f"it is of format {found}, not {_FORMAT}")
            if found == 0:
                self._ready.clear()
                self._versions.clear()
                connection.execute("PRAGMA journal_mode = WAL")
                # A crash of the machine may cost the last updates, and they are made again.
                connection.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} {EXAMPLES} PRAGMA user_version = {_FORMAT}; COMMIT;"
                )
            connection.execute("PRAGMA synchronous = NORMAL")
            yield connection

    def _forget(self) -> None:
        self._ready.clear()
        self._versions.clear()
        for suffix in ("", "-wal", "-shm"):
            self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)

    def _follow(self, connection: sqlite3.Connection, name: str, stopping: threading.Event) -> None:
        """The rows of a table that came since; its positions move once all of them are in."""
        tail = self._tails.get(name) or TableTail.open(self._lake / name)
        if tail is None:
            return
        self._tails[name] = tail
        if self._versions.get(name) == tail.renew():
            return
        positions: Positions = {
            (log_id, partition): following
            for log_id, partition, following in connection.execute(
                "SELECT log_id, log_partition, following FROM positions WHERE lake = ?", (name,)
            )
        }
        columns, add = _TABLES[name]
        for batch in tail.rows_after(positions, columns):
            if stopping.is_set():
                return
            with _transaction(connection):
                add(connection, batch)
            _advance(positions, batch)
        with _transaction(connection):
            connection.executemany(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)",
                [(name, *source, following) for source, following in positions.items()],
            )
        self._versions[name] = tail.version

    def _dataset_names(self) -> list[str]:
        return sorted(file.parent.name for file in self._datasets.glob("d-*/manifest.json"))

    def _add_datasets(self, connection: sqlite3.Connection, names: Sequence[str], stopping: threading.Event) -> None:
        known = dict(connection.execute("SELECT dataset_id, whole FROM datasets"))
        with _transaction(connection):
            for gone in known.keys() - set(names):
                number = "(SELECT number FROM datasets WHERE dataset_id = ?)"
                connection.execute(f"DELETE FROM uses WHERE dataset = {number}", (gone,))
                remove_examples(connection, gone)
                connection.execute("DELETE FROM datasets WHERE dataset_id = ?", (gone,))
        for name in names:
            if stopping.is_set():
                return
            if not known.get(name):
                self._add_dataset(connection, name)

    def _add_dataset(self, connection: sqlite3.Connection, name: str) -> None:
        """Its examples' feedback; one that is damaged is looked at again next time."""
        try:
            dataset = open_dataset(self._datasets / name)
        except (DataLoss, NotFound) as error:
            self._complain(name, error.message)
            return
        manifest = dataset.manifest
        with _transaction(connection):
            connection.execute(
                "INSERT OR IGNORE INTO datasets (dataset_id, tenant, persona, recipe, created_unix_ms, whole)"
                " VALUES (?, ?, ?, ?, ?, 0)",
                (name, manifest.tenant, manifest.persona, manifest.recipe.name, manifest.created_unix_ms),
            )
        number = connection.execute("SELECT number FROM datasets WHERE dataset_id = ?", (name,)).fetchone()[0]
        for file in manifest.files:
            with pq.ParquetFile(dataset.folder / file.name) as parquet:
                for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=list(_EXAMPLE_COLUMNS)):
                    rows = list(zip(*(batch[column].to_pylist() for column in _EXAMPLE_COLUMNS), strict=True))
                    uses = [
                        (number, split, feedback_id)
                        for _, split, feedback_ids, _ in rows
                        for feedback_id in feedback_ids or ()
                    ]
                    with _transaction(connection):
                        connection.executemany(_ADD_USE, uses)
                        add_examples(connection, number, rows)
        with _transaction(connection):
            connection.execute("UPDATE datasets SET whole = 1 WHERE number = ?", (number,))

    def _add_left_out(
        self, connection: sqlite3.Connection, left_out: Sequence[LeftOut], stopping: threading.Event
    ) -> None:
        known = dict(connection.execute("SELECT scope, stamp FROM builds"))
        for each in left_out:
            if stopping.is_set():
                return
            scope = f"{each.tenant}/{each.persona}/{each.recipe}"
            if known.get(scope) != each.stamp:
                self._replace_left_out(connection, scope, each)

    def _replace_left_out(self, connection: sqlite3.Connection, scope: str, left_out: LeftOut) -> None:
        """What the build before said and this one does not goes last."""
        with _transaction(connection):
            connection.execute(
                "INSERT OR IGNORE INTO builds (scope, recipe, stamp) VALUES (?, ?, '')", (scope, left_out.recipe)
            )
        number = connection.execute("SELECT number FROM builds WHERE scope = ?", (scope,)).fetchone()[0]
        try:
            for rows in _pieces(left_out.rows()):
                with _transaction(connection):
                    connection.executemany(
                        _ADD_LEFT_OUT, [(number, reason, left_out.stamp, feedback_id) for feedback_id, reason in rows]
                    )
        except DataLoss as error:
            logger.error("what was left out cannot be read for receipts", extra={"reason": error.message})
        with _transaction(connection):
            connection.execute("DELETE FROM left_out WHERE build = ? AND stamp <> ?", (number, left_out.stamp))
            connection.execute("UPDATE builds SET stamp = ? WHERE number = ?", (left_out.stamp, number))

    def _add_policies(self, connection: sqlite3.Connection) -> None:
        judged = dict(connection.execute("SELECT policy_id, passed FROM policies"))
        for policy_id in self._registry.ids():
            if judged.get(policy_id) is not None:
                continue
            try:
                manifest = self._registry.read(policy_id)
            except AttuneError as error:
                self._complain(policy_id, error.message)
                continue
            try:
                passed: bool | None = self._registry.read_verdict(policy_id).passed
            except AttuneError:  # none yet, or a damaged one
                passed = None
            with _transaction(connection):
                connection.execute(
                    "INSERT OR REPLACE INTO policies VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        policy_id,
                        manifest.tenant,
                        manifest.persona,
                        manifest.parent_policy_id,
                        manifest.created_unix_ms,
                        passed,
                    ),
                )
                connection.executemany(
                    "INSERT OR IGNORE INTO policy_datasets VALUES (?, ?)",
                    [(dataset_id, policy_id) for dataset_id in manifest.dataset_ids],
                )

    def _complain(self, what: str, reason: str) -> None:
        """Once: it is looked at again each time."""
        if what not in self._complaints:
            self._complaints.add(what)
            logger.error("left out of receipts while it cannot be read", extra={"what": what, "reason": reason})


def keep_up_to_date(index: ReceiptIndex, stopping: threading.Event, poll_seconds: float) -> None:
    """Until it is told to stop. What fails is tried again."""
    while not stopping.is_set():
        try:
            index.update(stopping)
        except (AttuneError, OSError) as error:
            logger.error("receipts could not be brought up to date", extra={"reason": str(error)})
        stopping.wait(poll_seconds)


def _erase(connection: sqlite3.Connection, response_events: Collection[str], feedback_ids: Collection[str]) -> int:
    connection.execute("CREATE TEMP TABLE gone (event_id TEXT PRIMARY KEY) WITHOUT ROWID")
    connection.executemany(
        "INSERT OR IGNORE INTO gone VALUES (?)", [(one,) for one in (*response_events, *feedback_ids)]
    )
    numbers = "(SELECT number FROM feedback WHERE event_id IN (SELECT event_id FROM gone))"
    for table in ("uses", "left_out", "ranked", "example_feedback"):
        connection.execute(f"DELETE FROM {table} WHERE feedback IN {numbers}")
    responses = "(SELECT response_id FROM responses WHERE event_id IN (SELECT event_id FROM gone))"
    connection.execute(f"DELETE FROM example_responses WHERE response_id IN {responses}")
    erased = 0
    for table in ("feedback", "responses"):
        erased += connection.execute(f"DELETE FROM {table} WHERE event_id IN (SELECT event_id FROM gone)").rowcount
    connection.execute("DROP TABLE gone")
    return erased


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _add_responses(connection: sqlite3.Connection, batch: pa.RecordBatch) -> None:
    columns = [batch[name].to_pylist() for name in _RESPONSE_COLUMNS]
    created = batch["created_unix_ms"].to_pylist()
    connection.executemany(_ADD_RESPONSE, zip(*columns, _prompts(batch), created, strict=True))


def _add_feedback(connection: sqlite3.Connection, batch: pa.RecordBatch) -> None:
    columns = [batch[name].to_pylist() for name in _FEEDBACK_COLUMNS]
    # Columns that an older version of the table did not have are null.
    rows = [tuple("" if value is None else value for value in row) for row in zip(*columns, strict=True)]
    connection.executemany(_ADD_FEEDBACK, rows)
    ranked = [
        (entry["response_id"], event_id)
        for event_id, ranking in zip(columns[0], batch["ranking"].to_pylist(), strict=True)
        for entry in ranking or ()
    ]
    connection.executemany(_ADD_RANKED, ranked)


_TABLES: dict[str, tuple[Sequence[str], Any]] = {
    RESPONSES: (
        (*_RESPONSE_COLUMNS, "created_unix_ms", "prompt_token_ids", "messages"),
        _add_responses,
    ),
    FEEDBACK: ((*_FEEDBACK_COLUMNS, "ranking"), _add_feedback),
}


def _prompts(batch: pa.RecordBatch) -> list[bytes]:
    """By what two answers are told to be to one prompt: its tokens, of what came from elsewhere its messages."""
    tokens, messages = batch["prompt_token_ids"], batch["messages"]
    values = tokens.values.to_numpy(zero_copy_only=False) if len(tokens.values) else np.array([], dtype="<i8")
    ends = tokens.offsets.to_numpy()
    found = []
    for row, (start, end) in enumerate(itertools.pairwise(ends)):
        if end > start:
            found.append(b"t" + _digest(values[start:end].astype("<i8").tobytes()))
        else:
            found.append(b"m" + _digest(json.dumps(messages[row].as_py(), sort_keys=True).encode()))
    return found


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _advance(positions: Positions, batch: pa.RecordBatch) -> None:
    sources = zip(*(batch[name].to_pylist() for name in ("log_id", "log_partition", "log_offset")), strict=True)
    for log_id, partition, offset in sources:
        positions[log_id, partition] = max(positions.get((log_id, partition), 0), offset + 1)


def _pieces(rows: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    iterator = iter(rows)
    while piece := list(itertools.islice(iterator, _ROWS_AT_ONCE)):
        yield piece
