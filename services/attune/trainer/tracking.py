"""MLflow: a run for every cycle, in a local SQLite file unless the operator names a server."""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from attune.errors import Unavailable

_EXPERIMENT = "attune"
_FORBIDDEN = re.compile(r"[^\w\-. :/]")  # in names of MLflow's metrics


def stay_at_home() -> None:
    """Keeps the libraries from calling their makers and the model hub, and from drawing on the terminal.

    To be called before they are imported.
    """
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        MLFLOW_CONFIGURE_LOGGING="false",
        MLFLOW_DISABLE_TELEMETRY="true",
        DO_NOT_TRACK="1",
        TQDM_DISABLE="1",
    )


def open_tracking(uri: str) -> None:
    """Connects to MLflow, making its tables where they are missing, which takes seconds.

    Raises Unavailable, without the address, which may hold a password.
    """
    import mlflow
    from sqlalchemy.exc import SQLAlchemyError

    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(_EXPERIMENT)
    except (mlflow.MlflowException, SQLAlchemyError) as error:
        raise Unavailable(
            f"MLflow's store cannot be used ({type(error).__name__}): see trainer.mlflow_uri; a damaged mlflow.db in "
            "the data folder may be moved away, for it holds the runs' curves only"
        ) from None


@contextlib.contextmanager
def tracked_run(name: str, tags: Mapping[str, str]) -> Iterator[None]:
    """A run that TRL's own reports go to as well. An exception ends it as failed."""
    import mlflow

    with mlflow.start_run(run_name=name, tags=dict(tags)):
        yield


def track_figures(figures: Mapping[str, float]) -> None:
    """Adds figures to the open run."""
    import mlflow

    mlflow.log_metrics({_FORBIDDEN.sub("_", name): value for name, value in figures.items()})


def track_dataset(name: str, dataset_id: str, folder: Path) -> None:
    """Says what the open run learns from: by its id, which is a digest, and where it lies here; no row is sent."""
    import mlflow
    from mlflow.data.dataset_source_registry import get_dataset_source_from_json
    from mlflow.data.meta_dataset import MetaDataset

    source = get_dataset_source_from_json(json.dumps({"uri": str(folder)}), "local")
    mlflow.log_input(MetaDataset(source, name=name, digest=dataset_id), context="training")
