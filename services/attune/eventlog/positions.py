"""How far each reader is: `positions/<reader>.json`, replaced atomically."""

import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from attune.errors import FailedPrecondition
from attune.files import sync
from attune.ids import check_name

SHIPPER = "shipper"

logger = logging.getLogger(__name__)


def _positions_file(folder: Path, reader: str) -> Path:
    return folder / "positions" / f"{check_name(reader, 'reader')}.json"


def write_positions(folder: Path, reader: str, log_id: str, positions: Mapping[tuple[str, int], int]) -> None:
    file = _positions_file(folder, reader)
    if not file.parent.exists():
        file.parent.mkdir(exist_ok=True)
        sync(folder)
    draft = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    rows = [[topic, partition, offset] for (topic, partition), offset in sorted(positions.items())]
    draft.write_text(json.dumps({"log_id": log_id, "positions": rows}))
    sync(draft)
    draft.replace(file)
    sync(file.parent)


def read_positions(folder: Path, reader: str, log_id: str) -> dict[tuple[str, int], int]:
    """Empty for a file that is absent, unreadable or another log's: nothing is trimmed until the reader commits."""
    try:
        written = json.loads(_positions_file(folder, reader).read_text())
        if written["log_id"] != log_id:
            return {}
        return {(topic, partition): offset for topic, partition, offset in written["positions"]}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        logger.warning("a reader's positions cannot be read; nothing is trimmed behind it", extra={"reader": reader})
        return {}


def refuse_shipped_spool(folder: Path) -> None:
    """Raises FailedPrecondition where a shipper has taken records: nobody else knows them all any more."""
    if _positions_file(folder, SHIPPER).exists():
        raise FailedPrecondition(
            f"the records of {folder} went on to Kafka: start with kafka.servers (or `attune up --kafka`) as before; "
            f"to do without, let the aggregator take in what Kafka holds, stop, and move {folder} away"
        )
