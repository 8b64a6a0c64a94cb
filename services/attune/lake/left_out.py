"""Why feedback is in no dataset: what the newest build of each recipe said of what it left out.

    datasets/left-out/<tenant>/<persona>/<recipe>.parquet    feedback_id, reason; replaced whole by each build

No part of a dataset: another build may give the same examples and leave out more.
"""

import logging
import os
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from attune.errors import DataLoss
from attune.files import sync
from attune.lake.dataset import Manifest

logger = logging.getLogger(__name__)

_FOLDER = "left-out"
_SCHEMA = pa.schema([("feedback_id", pa.string()), ("reason", pa.string())])
_CREATED = b"created_unix_ms"


@dataclass(frozen=True)
class LeftOut:
    """What one recipe left out; `stamp` is another one after each build."""

    tenant: str
    persona: str
    recipe: str
    file: Path
    stamp: str

    def rows(self) -> Iterator[tuple[str, str]]:
        """Feedback ids with their reasons, piece by piece; raises DataLoss when the file is damaged."""
        try:
            with pq.ParquetFile(self.file, page_checksum_verification=True) as parquet:
                for batch in parquet.iter_batches(columns=_SCHEMA.names):
                    yield from zip(batch["feedback_id"].to_pylist(), batch["reason"].to_pylist(), strict=True)
        except (OSError, pa.ArrowException) as error:
            raise DataLoss(f"{self.file} is damaged: {error}") from None


def erase_left_out(datasets: Path, feedback_ids: Collection[str]) -> int:
    """Takes these out of every recipe's file; says how many notes there were."""
    erased = 0
    for left_out in list_left_out(datasets):
        table = pq.read_table(left_out.file)
        theirs = pc.is_in(table["feedback_id"], pa.array(sorted(feedback_ids), pa.string()))
        count = pc.sum(theirs).as_py() or 0
        if count:
            _replace(left_out.file, table.filter(pc.invert(theirs)))
            erased += count
    return erased


def write_left_out(datasets: Path, manifest: Manifest, found: pa.Table, created_unix_ms: int) -> None:
    """Of all rows that a recipe gave those with `left_out`, for each of their `feedback_ids`; durably."""
    rows = found.select(["feedback_ids", "left_out"]).filter(pc.is_valid(found["left_out"])).combine_chunks()
    ids = rows["feedback_ids"].combine_chunks()
    table = pa.table(
        [pc.list_flatten(ids), rows["left_out"].take(pc.list_parent_indices(ids))],
        schema=_SCHEMA.with_metadata({_CREATED: str(created_unix_ms)}),
    )
    file = datasets / _FOLDER / manifest.tenant / manifest.persona / f"{manifest.recipe.name}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    _replace(file, table)


def _replace(file: Path, table: pa.Table) -> None:
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        pq.write_table(table, draft, compression="zstd", write_page_checksum=True)
        sync(draft)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    sync(file.parent)


def list_left_out(datasets: Path) -> list[LeftOut]:
    """Every recipe's, in order."""
    found = []
    for file in sorted((datasets / _FOLDER).glob("*/*/*.parquet")):
        if file.name.startswith("."):
            continue
        try:
            status = os.stat(file)
        except FileNotFoundError:
            continue
        tenant, persona = file.parts[-3:-1]
        found.append(
            LeftOut(tenant, persona, file.stem, file, f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}")
        )
    return found
