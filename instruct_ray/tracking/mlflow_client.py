"""The MLflow server or database that the config names, and a client for it."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE_PREFIX = "sqlite:///"
# Without it MLflow's pages show what belongs to prompts and agents, not to training runs.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def tracking_uri(config: Config) -> str:
    """Return the MLflow URI for runs and versions: `registry.uri`, or a SQLite file in `run.storage`."""
    return config.registry.uri or local_registry_uri(config.run.storage)


def local_registry_uri(storage: Path) -> str:
    """The URI of the SQLite file in a storage of runs."""
    # Quoted: the folder's name may contain % or ?, which mean something in a URI.
    return f"{SQLITE_PREFIX}{quote(str(local_database(storage)))}"


def require_registry_uri(config: Config) -> str:
    """Return the URI of a registry that exists. For readers: connecting to a new URI would create a database.

    Raises:
        InputError: nothing has been registered yet: it is a SQLite file that is not there.
    """
    uri = tracking_uri(config)
    if (database := missing_database(uri)) is not None:
        raise InputError(f"nothing is registered: no database {database}; run `instruct-ray register` first")
    return uri


def missing_database(uri: str) -> Path | None:
    """The SQLite file that a URI names and that is not there. Connecting would create it."""
    if not uri.startswith(SQLITE_PREFIX):
        return None
    database = Path(unquote(uri.removeprefix(SQLITE_PREFIX)))
    return None if database.is_file() else database


def local_database(storage: Path) -> Path:
    """The SQLite file that runs of a storage are registered in, if their config names no server."""
    return storage / "mlflow.db"


def local_artifacts(config: Config) -> str:
    """The folder of artifacts: a path, or a URI if MLflow would take the path for something else."""
    folder = config.run.storage / "mlartifacts"
    return str(folder) if quote(str(folder)) == str(folder) else folder.as_uri()


def connect_mlflow(uri: str) -> "MlflowClient":
    """Create an MLflow client without telemetry, progress output and pickle loading."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    # Of a transfer of a file; MLflow's 7 take minutes until a store that is down is reported.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    # Slow to import, and reads the variables above at import.
    import mlflow  # noqa: PLC0415

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    # Named again: another thread of this process may connect to another server between these lines.
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def get_or_create_experiment(client: "MlflowClient", config: Config) -> str:
    """Return the id of the experiment named after the registered model; create it if needed."""
    experiment = client.get_experiment_by_name(config.registry.name)
    if experiment is not None:
        return str(experiment.experiment_id)
    # A server chooses the artifact location itself.
    artifacts = None if config.registry.uri else local_artifacts(config)
    return str(client.create_experiment(config.registry.name, artifact_location=artifacts, tags=EXPERIMENT_TAGS))
