"""Reading the lake with Spark, where one machine is too small: the same views and recipes, transpiled.

What a statement means is said once, in DuckDB's dialect; sqlglot rewrites it. Tests compare the rows of both engines.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from attune.errors import FailedPrecondition, Unavailable
from attune.lake.place import Place
from attune.lake.snapshot import (
    REPEATED,
    SEARCHES,
    SENT_AGAIN_WITHIN_MS,
    VIEWS,
    counting_views,
    newest_handles,
)
from attune.maven import fetch_jars

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

DELTA = "io.delta:delta-spark_2.13:4.0.0"

_BATCH_ROWS = 10_000
_PART_BYTES = 64 << 20
_OTHERWISE = "build with --engine duckdb"


@dataclass(frozen=True)
class SparkSnapshot:
    """A Source in Spark; results pass through files in `scratch`, for they may be larger than memory."""

    session: "SparkSession"
    versions: Mapping[str, int]
    scratch: Path

    def define_views(self) -> None:
        """The views that recipes read. Which rows do not count is looked for once; there are hardly any."""
        searches = [VIEWS.format(name=name) for name in self.versions]
        searches += [REPEATED.format(within_ms=SENT_AGAIN_WITHIN_MS), "SELECT 1"]
        with _reported():
            self._last("\n".join(searches), {})
            found = {name: self.session.table(name).toArrow() for name in SEARCHES}
            for name, rows in found.items():
                self.define(f"{name}_found", rows)
            named = {name: f"{name}_found" for name, rows in found.items() if rows.num_rows}
            self._last(f"{counting_views(named)}\nSELECT 1", {})

    def define(self, name: str, table: pa.Table) -> None:
        with _reported():
            self.session.createDataFrame(table).createOrReplaceTempView(name)

    def rows(self, query: str, arguments: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        with _reported():
            return [tuple(row) for row in self._last(query, arguments or {}).collect()]

    def run(self, script: str, arguments: Mapping[str, Any]) -> pa.RecordBatchReader:
        with _reported():
            found = Path(tempfile.mkdtemp(dir=self.scratch))
            self._last(script, arguments).write.mode("overwrite").parquet(str(found))
        files = sorted(found.glob("part-*.parquet"))
        return pa.RecordBatchReader.from_batches(pq.read_schema(files[0]), _batches(files, found))

    def _last(self, script: str, arguments: Mapping[str, Any]) -> "DataFrame":
        """Makes the views that the statements define, and gives what the last one selects."""
        import sqlglot
        from sqlglot import expressions

        *definitions, query = (tree for tree in sqlglot.parse(script, read="duckdb") if tree is not None)
        for definition in definitions:
            if not isinstance(definition, expressions.Create):
                raise FailedPrecondition(f"a recipe only defines and selects, it does no {definition.key}")
            frame = self.session.sql(definition.expression.sql("spark"))
            if definition.kind == "TABLE":  # used more than once
                frame = frame.persist()
            frame.createOrReplaceTempView(definition.this.sql("spark"))
        return self.session.sql(query.sql("spark"), args=dict(arguments))


@contextlib.contextmanager
def open_spark_snapshot(place: Place, threads: int = 2, memory_mib: int = 1024) -> Iterator[SparkSnapshot]:
    """The newest versions of a lake, read by a Spark of this process alone, which ends with the block.

    Raises NotFound without a lake, FailedPrecondition, with what to install, where Spark cannot run.
    """
    if not isinstance(place, Path):
        raise FailedPrecondition(
            f"Spark reads lakes in folders, and this one is in an object store, {place}: {_OTHERWISE}"
        )
    handles = newest_handles(place)
    versions = {name: int(handle.version()) for name, handle in handles.items()}
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attune-spark-")))
        parts = max(threads, sum(map(_bytes, handles.values())) // _PART_BYTES)
        session = _session(threads, memory_mib, parts, scratch)
        stack.callback(session.stop)
        with _reported():
            for name, version in versions.items():
                rows = session.read.format("delta").option("versionAsOf", version).load(str(place / name))
                rows.createOrReplaceTempView(f"{name}_rows")
        snapshot = SparkSnapshot(session, versions, scratch)
        snapshot.define_views()
        yield snapshot


def _session(threads: int, memory_mib: int, parts: int, scratch: Path) -> "SparkSession":
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise FailedPrecondition(f'Spark is not installed: pip install "attune[spark]", or {_OTHERWISE}') from None
    jars = fetch_jars(DELTA.replace(":", "-"), [DELTA], "Spark", _OTHERWISE)
    delta = [str(jar) for jar in sorted(jars.glob("*.jar")) if jar.name.startswith(("delta-", "antlr4-"))]
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.master(f"local[{threads}]").appName("attune")
    for name, value in {
        "spark.jars": ",".join(delta),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.driver.memory": f"{max(memory_mib, 1024)}m",
        # Every query is compiled, and Java ends one for which a part of the room for compiled code is full.
        "spark.driver.extraJavaOptions": "-XX:ReservedCodeCacheSize=512m -XX:-SegmentedCodeCache",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.local.dir": str(scratch / "local"),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": str(parts),
        "spark.databricks.delta.snapshotPartitions": str(parts),
        # On a busy machine Python and Java wait for one another for longer than the usual 15 s, heartbeats than 120 s.
        "spark.python.authenticate.socketTimeout": "600s",
        "spark.network.timeout": "600s",
        "spark.sql.broadcastTimeout": "3600",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "OFF",  # what goes wrong is raised
    }.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def _bytes(handle: DeltaTable) -> int:
    """How much is in a table's files."""
    return sum(pa.table(handle.get_add_actions())["size_bytes"].to_pylist())


def _batches(files: list[Path], folder: Path) -> Iterator[pa.RecordBatch]:
    for file in files:
        with pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches(_BATCH_ROWS)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        raise Unavailable(f"the lake cannot be queried with Spark: {str(error).splitlines()[0]}") from error
