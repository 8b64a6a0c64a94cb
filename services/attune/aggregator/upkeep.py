"""The lake is kept in shape beside ingest, on handles of its own."""

import logging
import threading

from attune import metrics
from attune.errors import AttuneError
from attune.lake.lake import Lake
from attune.lake.place import Place
from attune.lake.upkeep import optimize
from attune.settings import LakeSettings

logger = logging.getLogger(__name__)


def keep_in_shape(place: Place, rules: LakeSettings, stopping: threading.Event) -> None:
    """Now and then until it is told to stop; what fails is tried again in the next round."""
    while not stopping.wait(rules.optimize_minutes * 60):
        try:
            for table in Lake(place, history_hours=rules.history_hours).tables:
                done = optimize(table)
                logger.info(
                    "table optimized",
                    extra={"table": table.name, "merged": done.merged_files, "deleted": done.deleted_files},
                )
                if stopping.is_set():
                    return
            metrics.LAKE_OPTIMIZED.labels("done").inc()
        except (AttuneError, OSError) as error:
            logger.warning("the lake was not optimized", extra={"reason": str(error)})
            metrics.LAKE_OPTIMIZED.labels("failed").inc()
