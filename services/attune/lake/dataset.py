"""Datasets: immutable, named by their content.

    datasets/<dataset_id>/part-00000.parquet ...    rows of ROW_SCHEMA, sorted by response and who
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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attune.errors import DataLoss, NotFound
from attune.lake.durable import sync
from attune.lake.tables import MESSAGES

logger = logging.getLogger(__name__)

ROW_SCHEMA = pa.schema(
    [
        ("feedback_ids", pa.list_(pa.string())),
        ("response_id", pa.string()),
        ("persona", pa.string()),
        ("persona_version", pa.string()),
        ("policy_id", pa.string()),
        ("conversation_id", pa.string()),
        ("end_user", pa.string()),
        ("turn", pa.int64()),
        ("messages", MESSAGES),
        ("prompt_token_ids", pa.list_(pa.uint32())),
        ("output_token_ids", pa.list_(pa.uint32())),
        ("output_logprobs", pa.list_(pa.float32())),
        ("text", pa.string()),
        ("liked", pa.bool_()),
        ("weight", pa.float64()),
        ("split", pa.string()),
        ("base_model_hash", pa.string()),
        ("chat_template_hash", pa.string()),
        ("created_unix_ms", pa.int64()),
    ]
)
"""What a learner gets. `feedback_ids` are the events of feedback that made the row an example; `end_user` is who gave
it; `split` is "train" or "heldout"."""

_SORTED_BY = [("response_id", "ascending"), ("end_user", "ascending")]
_MANIFEST = "manifest.json"
_ROWS_PER_FILE = 50_000
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

    `counts` has `train` and `heldout` by label (`liked`, `disliked`), and `left_out` by reason. `feedback_positions` is
    the next offset of each `<log id>/<partition>` of feedback that was in the lake: what stands there or later is new.
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

    def table(self) -> pa.Table:
        """The rows; raises DataLoss when a file is not what the manifest says."""
        parts = [
            pq.read_table(io.BytesIO(_read_checked(self.folder / file.name, file))) for file in self.manifest.files
        ]
        return pa.concat_tables(parts).cast(ROW_SCHEMA) if parts else ROW_SCHEMA.empty_table()


def write_dataset(
    folder: Path,
    rows: pa.Table,
    definition: Definition,
    *,
    left_out: Mapping[str, int],
    table_versions: Mapping[str, int],
    feedback_positions: Mapping[str, int],
    created_unix_ms: int,
) -> Dataset:
    """Writes rows of ROW_SCHEMA, durably, under `<folder>/<dataset_id>`; the same inputs give what is already there.

    A crash leaves either the whole dataset or none. Raises OSError when the disk is full; nothing is left then.
    """
    rows = rows.cast(ROW_SCHEMA).sort_by(_SORTED_BY).combine_chunks()
    dataset_id = _dataset_id(rows, definition)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    draft = folder / f".building-{dataset_id}-{secrets.token_hex(4)}"
    draft.mkdir()
    try:
        manifest = Manifest(
            dataset_id,
            definition.tenant,
            definition.persona,
            definition.recipe,
            definition.settings,
            definition.seed,
            {**_counts(rows), "left_out": dict(sorted(left_out.items()))},
            tuple(_write_files(draft, rows)),
            table_versions,
            feedback_positions,
            created_unix_ms,
        )
        _write_durably(draft / _MANIFEST, _seal(manifest))
        sync(draft)
        return _put_in_place(draft, folder / dataset_id, manifest)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def open_dataset(folder: Path) -> Dataset:
    """The dataset in `datasets/<dataset_id>`, with every file checked.

    Raises NotFound when it is not there, DataLoss when a byte of it is not what was written.
    """
    manifest = _read_manifest(folder)
    for file in manifest.files:
        _read_checked(folder / file.name, file)
    return Dataset(manifest, folder)


def list_datasets(folder: Path, tenant: str, persona: str) -> list[Dataset]:
    """The persona's datasets, the newest last, from their manifests alone; one with a damaged manifest is left out."""
    datasets = []
    for manifest_file in folder.glob(f"d-*/{_MANIFEST}"):
        try:
            manifest = _read_manifest(manifest_file.parent)
        except (DataLoss, NotFound) as error:
            logger.error("dataset left out", extra={"dataset_id": manifest_file.parent.name, "reason": error.message})
            continue
        if (manifest.tenant, manifest.persona) == (tenant, persona):
            datasets.append(Dataset(manifest, manifest_file.parent))
    return sorted(datasets, key=lambda dataset: (dataset.manifest.created_unix_ms, dataset.manifest.dataset_id))


def _dataset_id(rows: pa.Table, definition: Definition) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps(asdict(definition), sort_keys=True).encode())
    digest.update(rows.num_rows.to_bytes(8, "little"))
    for name in rows.column_names:
        digest.update(f"\0{name}\0".encode())
        _digest_column(rows[name].combine_chunks(), digest)
    return f"d-{digest.hexdigest()[:32]}"


def _digest_column(column: pa.Array, digest: "hashlib._Hash") -> None:
    """Lengths and values, little-endian, one column after the other: the same for any slicing and any Arrow version.

    Absent values are marked before the rest, which then holds a default in their place.
    """
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    kind = column.type
    digest.update(column.is_null().to_numpy(zero_copy_only=False).tobytes())
    if pa.types.is_list(kind):
        lengths = column.value_lengths().fill_null(0)
        digest.update(lengths.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        _digest_column(column.flatten(), digest)
    elif pa.types.is_struct(kind):
        for part in column.flatten():
            _digest_column(part, digest)
    elif pa.types.is_string(kind):
        encoded = [text.encode() for text in column.fill_null("").to_pylist()]
        digest.update(np.array([len(text) for text in encoded], dtype="<i8").tobytes())
        digest.update(b"".join(encoded))
    else:
        values = column.fill_null(False if pa.types.is_boolean(kind) else 0).to_numpy(zero_copy_only=False)
        digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())


def _counts(rows: pa.Table) -> dict[str, dict[str, int]]:
    counts = {split: {"liked": 0, "disliked": 0} for split in ("train", "heldout")}
    for split, liked in zip(rows["split"].to_pylist(), rows["liked"].to_pylist(), strict=True):
        counts[split]["liked" if liked else "disliked"] += 1
    return counts


def _write_files(draft: Path, rows: pa.Table) -> list[DatasetFile]:
    files = []
    for number, start in enumerate(range(0, rows.num_rows, _ROWS_PER_FILE)):
        part = rows.slice(start, _ROWS_PER_FILE)
        buffer = io.BytesIO()
        pq.write_table(part, buffer, compression="zstd")
        written = buffer.getvalue()
        name = f"part-{number:05d}.parquet"
        _write_durably(draft / name, written)
        files.append(DatasetFile(name, hashlib.sha256(written).hexdigest(), part.num_rows, len(written)))
    return files


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
        raise NotFound(f"no dataset in {folder}") from None
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


def _remove_abandoned(folder: Path) -> None:
    """What a build that was killed has left; another process's running build is younger than that."""
    for draft in folder.glob(".building-*"):
        try:
            if time.time() - draft.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(draft, ignore_errors=True)
        except FileNotFoundError:
            continue
