"""What a power cut can leave of a Delta table, and how it opens again.

A commit that was not yet made durable may come back with its log entry cut short, or with data files that are. It is
always among the newest, and the event log still holds its records, because those are trimmed only behind durable
commits: so it is set aside, and its records are ingested again. Had it been durable and was damaged later, the offset
that the table goes back to lies before what the event log holds, and ingest raises its alarm.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from attune.files import sync

logger = logging.getLogger(__name__)

_ENTRY = re.compile(r"[0-9]{20}\.json")
_SET_ASIDE = "_torn"
# Each batch is made durable before the next one; beside it there may be a compaction and a vacuum's two entries.
_NOT_YET_DURABLE = 4


def set_torn_commits_aside(folder: Path) -> None:
    """Moves to `_torn` the newest commits, from the oldest one that is not whole, and a checkpoint that is not.

    A commit that another process makes meanwhile does no harm: it appears whole or not at all.
    """
    log = folder / "_delta_log"
    if not log.is_dir():
        return
    newest = sorted((path for path in log.iterdir() if _ENTRY.fullmatch(path.name)), reverse=True)[:_NOT_YET_DURABLE]
    torn = 0
    removed: set[str] = set()
    for place, entry in enumerate(newest, 1):
        actions = _actions(entry)
        added = [action["add"] for action in actions if "add" in action]
        if not actions or not all(_is_whole(folder, add) for add in added if add["path"] not in removed):
            torn = place
        removed |= {action["remove"]["path"] for action in actions if "remove" in action}
    for place, entry in enumerate(newest, 1):
        checkpoint = entry.with_suffix(".checkpoint.parquet")
        if checkpoint.exists() and (place <= torn or not _is_parquet(checkpoint)):
            _set_aside(folder, checkpoint)
            _set_aside(folder, log / "_last_checkpoint")
        if place <= torn:
            _set_aside(folder, entry)


def _actions(entry: Path) -> list[dict[str, Any]]:
    """Empty when the entry is not whole."""
    try:
        return [json.loads(line) for line in entry.read_text().splitlines()]
    except (ValueError, FileNotFoundError):
        return []


def _is_whole(folder: Path, add: dict[str, Any]) -> bool:
    try:
        return bool((folder / unquote(add["path"])).stat().st_size == add["size"])
    except FileNotFoundError:
        return False


def _is_parquet(file: Path) -> bool:
    try:
        pq.ParquetFile(file).close()
    except (OSError, pa.ArrowException):
        return False
    return True


def _set_aside(folder: Path, file: Path) -> None:
    if not file.exists():
        return
    torn = folder / _SET_ASIDE
    torn.mkdir(exist_ok=True)
    file.replace(torn / file.name)
    sync(torn)
    sync(file.parent)
    logger.error("a torn commit was set aside", extra={"table": folder.name, "file": file.name})
