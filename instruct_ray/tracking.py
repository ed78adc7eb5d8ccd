"""Training -> an MLflow run: parameters at the start, metrics off the step path."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_ray.config import Config
from instruct_ray.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

POLL_SECONDS = 0.5


def tracking_uri(config: Config) -> str:
    """Where runs and versions are kept: `registry.uri`, or a SQLite file beside the runs."""
    return config.registry.uri or f"sqlite:///{_local_database(config)}"


def existing_registry(config: Config) -> str:
    """As `tracking_uri`, for those that only read: no database is made.

    Raises:
        InputError: nothing was ever registered there.
    """
    if config.registry.uri is None and not _local_database(config).is_file():
        raise InputError(f"nothing is registered under {config.run.storage}; run `python -m jobs.register` first")
    return tracking_uri(config)


def _local_database(config: Config) -> Path:
    return config.run.storage / "mlflow.db"


def connect(uri: str) -> "MlflowClient":
    """An MLflow client for runs and registry, quiet, without usage reports and without loaders that unpickle."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    # Slow to import, and reads the lines above when it is.
    import mlflow  # noqa: PLC0415

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient()


def experiment_id(client: "MlflowClient", config: Config) -> str:
    """The experiment of all runs that make versions of one registered model."""
    experiment = client.get_experiment_by_name(config.registry.name)
    if experiment is not None:
        return str(experiment.experiment_id)
    # A server decides by itself where artifacts go.
    artifacts = None if config.registry.uri else f"{config.run.storage}/mlartifacts"
    return str(client.create_experiment(config.registry.name, artifact_location=artifacts))


class TrackedRun:
    """Follows `metrics.jsonl` while a training runs: each new line goes to MLflow and to `on_step`."""

    def __init__(self, config: Config, run_id: str | None, metrics: Path, on_step: Callable[[dict[str, Any]], None]):
        self._client = connect(tracking_uri(config))
        self._metrics = metrics
        self._on_step = on_step
        if run_id is None:
            run = self._client.create_run(experiment_id(self._client, config), run_name=config.run.name)
            run_id = str(run.info.run_id)
            for key, value in _flatten(config.model_dump(mode="json", exclude={"serving"})):
                self._client.log_param(run_id, key, value)
        self.id = run_id
        self._num_logged = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._client.update_run(self.id, status="RUNNING")
        self._thread.start()

    def finish(self, status: str) -> None:
        """Log what is left and end the run as FINISHED, FAILED or KILLED."""
        self._stopped.set()
        self._thread.join()
        self._log_new_lines()
        self._client.set_terminated(self.id, status=status)

    def _follow(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            self._log_new_lines()

    def _log_new_lines(self) -> None:
        if not self._metrics.exists():
            return
        # A line without its line feed is still being written.
        lines = [line for line in self._metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
        # Fewer lines than before: a restarted worker cut the steps that it does again.
        self._num_logged = min(self._num_logged, len(lines))
        for line in lines[self._num_logged :]:
            self._log(json.loads(line))
        self._num_logged = len(lines)

    def _log(self, record: dict[str, Any]) -> None:
        self._on_step(record)
        now = int(time.time() * 1000)
        from mlflow.entities import Metric  # noqa: PLC0415  (see connect)

        metrics = [
            Metric(key, float(value), now, record["step"])
            for key, value in record.items()
            if key != "step" and value is not None
        ]
        self._client.log_batch(self.id, metrics=metrics, synchronous=False)


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, str(value)))
    return pairs
