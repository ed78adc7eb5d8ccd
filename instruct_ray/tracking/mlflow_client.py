"""The MLflow server or database that the config names, and a client for it."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient


def tracking_uri(config: Config) -> str:
    """Return the MLflow URI for runs and versions: `registry.uri`, or a SQLite file in `run.storage`."""
    return config.registry.uri or f"sqlite:///{_local_database(config)}"


def require_registry_uri(config: Config) -> str:
    """Return the URI of a registry that exists. For readers: connecting to a new URI would create a database.

    Raises:
        InputError: nothing has been registered in `run.storage` yet.
    """
    if config.registry.uri is None and not _local_database(config).is_file():
        raise InputError(f"nothing is registered under {config.run.storage}; run `instruct-ray register` first")
    return tracking_uri(config)


def _local_database(config: Config) -> Path:
    return config.run.storage / "mlflow.db"


def connect_mlflow(uri: str) -> "MlflowClient":
    """Create an MLflow client without telemetry, progress output and pickle loading."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    # Slow to import, and reads the variables above at import.
    import mlflow  # noqa: PLC0415

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient()


def get_or_create_experiment(client: "MlflowClient", config: Config) -> str:
    """Return the id of the experiment named after the registered model; create it if needed."""
    experiment = client.get_experiment_by_name(config.registry.name)
    if experiment is not None:
        return str(experiment.experiment_id)
    # A server chooses the artifact location itself.
    artifacts = None if config.registry.uri else f"{config.run.storage}/mlartifacts"
    return str(client.create_experiment(config.registry.name, artifact_location=artifacts))
