"""Datasets: immutable, named by their content.

    datasets/<dataset_id>/part-00000.parquet ...    rows, sorted by example_id; which columns, the recipe says
    datasets/<dataset_id>/manifest.json             written last; a folder without it is no dataset

A dataset is built in a folder of its own and renamed when it is whole, so what is listed is complete. The id is a hash
of the rows, the recipe, its settings and the seed: the order in which events arrived and the layout of files do not
change it. Every read checks SHA-256.
"""

import hashlib
import io
import json
import logging
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from attune.errors import DataLoss, FailedPrecondition, NotFound
from attune.files import sync
from attune.lake.canonical import RowsHash, canonical_schema
from attune.lake.sorting import sorted_rows

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_KEY = "example_id"
_CHUNK_ROWS = 10_000  # a part of what the id is a hash of
_CHUNKS_PER_FILE = 5
_ABANDONED_SECONDS = 3600


@dataclass(frozen=True)
class Recipe:
    """The SQL that says what a row is, word for word."""

    name: str
    text: str


@dataclass(frozen=True)
class Definition:
    """What a dataset is made by: together with its rows, this is what the id is a hash of."""

    tenant: str
    persona: str
    recipe: Recipe
    settings: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class DatasetFile:
    """One Parquet file of a dataset."""

    name: str
    sha256: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """All that is known of a dataset.

    `counts` has `train` and `heldout` by label, `left_out` by reason, and `weighed` by what changed weights, in rows.
    `feedback_positions` is the next offset of each `<log id>/<partition>` of feedback that was in the lake: what stands
    there or later is new.
    Table versions and positions are for the record and no part of the id.
    """

    dataset_id: str
    tenant: str
    persona: str
    recipe: Recipe
    settings: Mapping[str, Any]
    seed: int
    counts: Mapping[str, Mapping[str, int]]
    files: tuple[DatasetFile, ...]
    table_versions: Mapping[str, int]
    feedback_positions: Mapping[str, int]
    created_unix_ms: int


@dataclass(frozen=True)
class Dataset:
    """A manifest, and the folder its files are in."""

    manifest: Manifest
    folder: Path

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows; raises DataLoss when a file is not what the manifest says."""
        return pa.concat_tables([self._read(file, columns) for file in self.manifest.files])

    def files(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows, file by file; raises as `table` does."""
        return (self._read(file, columns) for file in self.manifest.files)

    def _read(self, file: DatasetFile, columns: Sequence[str] | None) -> pa.Table:
        return pq.read_table(io.BytesIO(_read_checked(self.folder / file.name, file)), columns=columns)

    def rebuilt_id(self) -> str:
        """The id that the rows as they are have; raises as `table` does."""
        rows = _definition_hash(self.manifest)
        for table in self.files():
            for chunk in _chunks(table):
                rows.update(chunk)
        return f"d-{rows.hexdigest()[:32]}"


def write_dataset(
    folder: Path,
    rows: pa.RecordBatchReader,
    definition: Definition,
    *,
    left_out: Mapping[str, int],
    weighed: Callable[[], Mapping[str, int]] = dict,
    finish: Callable[[pa.RecordBatch], pa.RecordBatch] = lambda rows: rows,
    table_versions: Mapping[str, int],
    feedback_positions: Mapping[str, int],
    created_unix_ms: int,
    reached: Callable[[str], None] = lambda _step: None,
) -> Dataset:
    """Writes rows, durably, under `<folder>/<dataset_id>`; the same inputs give what is already there.

    Rows come in any order, with at least example_id (hexadecimal digests, each once), label and split; no more of them
    than a small part is in memory at a time. Once all were read, `finish` is given them in their order, and may change
    what the columns hold; after the last one `left_out` is read and `weighed` asked. A crash leaves either the whole
    dataset or none. Raises OSError when the disk is full; nothing is left then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    draft = folder / f".building-{secrets.token_hex(8)}"
    draft.mkdir()
    try:
        schema = canonical_schema(rows.schema)
        canonical = pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in rows))
        writer = _Writer(draft, schema, _definition_hash(definition))
        for chunk in sorted_rows(canonical, _KEY, _CHUNK_ROWS, draft / "sorting"):
            writer.write(finish(chunk))
        manifest = Manifest(
            writer.finish(),
            definition.tenant,
            definition.persona,
            definition.recipe,
            definition.settings,
            definition.seed,
            {**writer.counts(), "left_out": dict(sorted(left_out.items())), "weighed": dict(weighed())},
            tuple(writer.files),
            table_versions,
            feedback_positions,
            created_unix_ms,
        )
        reached("files written")
        _write_durably(draft / _MANIFEST, _seal(manifest))
        sync(draft)
        reached("manifest written")
        dataset = _put_in_place(draft, folder / manifest.dataset_id, manifest)
        reached("in place")
        return dataset
    finally:
        shutil.rmtree(draft, ignore_errors=True)


class _Writer:
    """Chunks to files, counted and hashed on the way; there is at least one file, which then holds the schema."""

    def __init__(self, folder: Path, schema: pa.Schema, rows: RowsHash) -> None:
        self.files: list[DatasetFile] = []
        self._folder = folder
        self._schema = schema
        self._rows = rows
        self._counts: dict[str, Counter[str]] = {"train": Counter(), "heldout": Counter()}
        self._chunks: list[pa.RecordBatch] = []
        self._last = ""

    def write(self, chunk: pa.RecordBatch) -> None:
        keys = chunk.column(_KEY)
        if keys[0].as_py() == self._last or pa.compute.count_distinct(keys).as_py() < chunk.num_rows:
            raise FailedPrecondition("the recipe gives two rows the same example_id")
        self._last = keys[-1].as_py()
        self._rows.update(chunk)
        pairs = Counter(zip(chunk.column("split").to_pylist(), chunk.column("label").to_pylist(), strict=True))
        for (split, label), count in pairs.items():
            self._counts[split][label] += count
        self._chunks.append(chunk)
        if len(self._chunks) == _CHUNKS_PER_FILE:
            self._write_file()

    def finish(self) -> str:
        """Writes the rest, and says the dataset's id."""
        if self._chunks or not self.files:
            self._write_file()
        return f"d-{self._rows.hexdigest()[:32]}"

    def counts(self) -> dict[str, dict[str, int]]:
        """Both splits have every label that there is."""
        labels = sorted({label for counted in self._counts.values() for label in counted})
        return {split: {label: counted[label] for label in labels} for split, counted in self._counts.items()}

    def _write_file(self) -> None:
        path = self._folder / f"part-{len(self.files):05d}.parquet"
        with path.open("xb") as file:
            with pq.ParquetWriter(file, self._schema, compression="zstd") as parquet:
                for chunk in self._chunks:
                    parquet.write_batch(chunk)
            file.flush()
            os.fsync(file.fileno())
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        rows = sum(chunk.num_rows for chunk in self._chunks)
        self.files.append(DatasetFile(path.name, sha256, rows, path.stat().st_size))
        self._chunks = []


def open_dataset(folder: Path) -> Dataset:
    """The dataset in `datasets/<dataset_id>`, with every file checked.

    Raises NotFound when it is not there, DataLoss when a byte of it is not what was written.
    """
    manifest = _read_manifest(folder)
    for file in manifest.files:
        _read_checked(folder / file.name, file)
    return Dataset(manifest, folder)


def list_datasets(
    folder: Path, tenant: str | None = None, persona: str | None = None, recipe: str | None = None
) -> list[Dataset]:
    """Datasets, the newest last, from their manifests alone; one with a damaged manifest is left out."""
    datasets = []
    for manifest_file in folder.glob(f"d-*/{_MANIFEST}"):
        try:
            manifest = _read_manifest(manifest_file.parent)
        except (DataLoss, NotFound) as error:
            logger.error("dataset left out", extra={"dataset_id": manifest_file.parent.name, "reason": error.message})
            continue
        asked = ((tenant, manifest.tenant), (persona, manifest.persona), (recipe, manifest.recipe.name))
        if all(wanted in (None, found) for wanted, found in asked):
            datasets.append(Dataset(manifest, manifest_file.parent))
    return sorted(datasets, key=lambda dataset: (dataset.manifest.created_unix_ms, dataset.manifest.dataset_id))


def _definition_hash(made_by: Definition | Manifest) -> RowsHash:
    definition = Definition(made_by.tenant, made_by.persona, made_by.recipe, made_by.settings, made_by.seed)
    return RowsHash(json.dumps(asdict(definition), sort_keys=True).encode(), _CHUNK_ROWS)


def _chunks(table: pa.Table) -> Iterator[pa.RecordBatch]:
    for start in range(0, table.num_rows, _CHUNK_ROWS):
        yield table.slice(start, _CHUNK_ROWS).combine_chunks().to_batches()[0]


def _put_in_place(draft: Path, target: Path, manifest: Manifest) -> Dataset:
    try:
        draft.rename(target)
    except OSError:
        try:
            return open_dataset(target)
        except (DataLoss, NotFound) as damage:
            logger.error("dataset was damaged and is written anew", extra={"reason": damage.message})
            target.rename(draft.with_name(f"{draft.name}-damaged"))
            draft.rename(target)
            shutil.rmtree(draft.with_name(f"{draft.name}-damaged"), ignore_errors=True)
    sync(target.parent)
    return Dataset(manifest, target)


def _seal(manifest: Manifest) -> bytes:
    """The manifest as JSON with a checksum of its own."""
    content = asdict(manifest)
    return json.dumps({**content, "sha256": _checksum(content)}, indent=1, sort_keys=True).encode()


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    try:
        content = json.loads((folder / _MANIFEST).read_bytes())
        checksum = content.pop("sha256")
        if checksum != _checksum(content) or content["dataset_id"] != folder.name:
            raise DataLoss(f"{folder / _MANIFEST} is damaged: its checksum does not hold")
        content["recipe"] = Recipe(**content["recipe"])
        content["files"] = tuple(DatasetFile(**file) for file in content["files"])
        return Manifest(**content)
    except (FileNotFoundError, NotADirectoryError):
        gone = ": its rows were erased" if (folder / "erased.json").exists() else ""
        raise NotFound(f"no dataset in {folder}{gone}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataLoss(f"{folder / _MANIFEST} is damaged: {error}") from None


def _read_checked(path: Path, file: DatasetFile) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataLoss(f"{path} is missing") from None
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise DataLoss(f"{path} is damaged: its SHA-256 is not the manifest's")
    return content


def _write_durably(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove_abandoned(folder: Path, seconds: float = _ABANDONED_SECONDS) -> None:
    """What builds that were killed have left; another process's running build is younger than that."""
    for draft in folder.glob(".building-*"):
        try:
            written = max(file.stat().st_mtime for file in (draft, *draft.rglob("*")))
        except FileNotFoundError:
            continue
        if time.time() - written > seconds:
            shutil.rmtree(draft, ignore_errors=True)
