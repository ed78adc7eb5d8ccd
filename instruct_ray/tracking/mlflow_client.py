"""Config -> the MLflow server or database of runs and versions, and a client of it."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient


def tracking_uri(config: Config) -> str:
    """Where runs and versions are kept: `registry.uri`, or a SQLite file beside the runs."""
    return config.registry.uri or f"sqlite:///{_local_database(config)}"


def require_registry_uri(config: Config) -> str:
    """As `tracking_uri`, for those that only read: no database is made.

    Raises:
        InputError: nothing was ever registered there.
    """
    if config.registry.uri is None and not _local_database(config).is_file():
        raise InputError(f"nothing is registered under {config.run.storage}; run `instruct-ray register` first")
    return tracking_uri(config)


def _local_database(config: Config) -> Path:
    return config.run.storage / "mlflow.db"


def connect_mlflow(uri: str) -> "MlflowClient":
    """An MLflow client for runs and registry, quiet, without usage reports and without loaders that unpickle."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    # Slow to import, and reads the lines above when it is.
    import mlflow  # noqa: PLC0415

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient()


def get_or_create_experiment(client: "MlflowClient", config: Config) -> str:
    """The experiment of all runs that make versions of one registered model."""
    experiment = client.get_experiment_by_name(config.registry.name)
    if experiment is not None:
        return str(experiment.experiment_id)
    # A server decides by itself where artifacts go.
    artifacts = None if config.registry.uri else f"{config.run.storage}/mlartifacts"
    return str(client.create_experiment(config.registry.name, artifact_location=artifacts))
