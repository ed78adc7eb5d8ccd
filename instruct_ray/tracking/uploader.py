"""Uploads the metrics files of a run to its MLflow run, each line once."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_ray.config.schema import Config
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.jsonl_tail import JsonlTail
from instruct_ray.tracking.mlflow_client import connect_mlflow, get_or_create_experiment, tracking_uri
from instruct_ray.tracking.user_name import user_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


# Tag by which the run is found again if the response to its creation was lost.
RUN_KEY_TAG = "instruct_ray.token"
# MLflow's limit is 1000.
METRICS_PER_BATCH = 800
PARAMS_PER_BATCH = 100
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")

# A metric in every line of a file, by the first part of the file's prefix: its last step is how far the upload got.
PROGRESS_METRIC = {"": "lr", "validation": "loss", "checkpoint": "save_seconds", "system": "cpu_utilization_percentage"}


class MlflowUploader:
    """Finds or creates the MLflow run of a training run and uploads metrics to it. Every method may fail."""

    def __init__(
        self,
        config: Config,
        run_id: str | None,
        run_key: str,
        started_at: float | None,
        on_response: Callable[[], None],
    ) -> None:
        """Connect to the server and find or create the MLflow run.

        Args:
            config: Config of the training run.
            run_id: MLflow run id that is already known, if any.
            run_key: Value of the tag that identifies the MLflow run.
            started_at: Start time of a new MLflow run, in seconds since 1970; None for now.
            on_response: Called after each successful request.
        """
        self._client = connect_mlflow(tracking_uri(config))
        # It logs a traceback when the database is unreachable; the caller reports that in one line.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self._folder = RunFolder.from_config(config)
        self._on_response = on_response
        run = self._find_or_create(config, run_id, run_key, started_at)
        self.run_id = str(run.info.run_id)
        self._log_config(config, run.data.params)
        self._client.update_run(self.run_id, status="RUNNING")
        self._uploads: dict[Path, MetricsFileUpload] = {}

    def _find_or_create(self, config: Config, run_id: str | None, run_key: str, started_at: float | None) -> "Run":
        from mlflow.exceptions import MlflowException  # noqa: PLC0415  (see connect_mlflow)

        experiment = get_or_create_experiment(self._client, config)
        runs = self._client.search_runs([experiment], f"tags.`{RUN_KEY_TAG}` = '{run_key}'", max_results=1)
        if runs:
            return runs[0]
        if run_id is not None:
            try:
                return self._client.get_run(run_id)
            except MlflowException as error:
                # registry.uri names another server than before: create the run there and upload everything.
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        start_time = None if started_at is None else int(started_at * 1000)
        # Shown as creator and source of the run.
        shown = {"mlflow.user": user_name(), "mlflow.source.name": "instruct-ray tune", "mlflow.source.type": "JOB"}
        return self._client.create_run(experiment, start_time, {RUN_KEY_TAG: run_key, **shown}, config.run.name)

    def _log_config(self, config: Config, logged: dict[str, str]) -> None:
        from mlflow.entities import Param  # noqa: PLC0415  (see connect_mlflow)

        values = _flatten(config.model_dump(mode="json", exclude={"serving"}))
        params = [Param(key, redact_credentials(value)) for key, value in values if key not in logged]
        for start in range(0, len(params), PARAMS_PER_BATCH):
            self._client.log_batch(self.run_id, params=params[start : start + PARAMS_PER_BATCH])

    def upload_new_lines(self) -> None:
        """Upload the lines that were appended to the metrics files since the last call."""
        for path, prefix in self._metrics_files().items():
            if path not in self._uploads and path.is_file():
                self._uploads[path] = MetricsFileUpload(path, prefix, self._client, self.run_id)
        for upload in self._uploads.values():
            while upload.upload_next_batch():
                self._on_response()

    def _metrics_files(self) -> dict[Path, str]:
        """The files to upload, each with the prefix of its metrics."""
        # MLflow shows metrics under `system/` as system metrics.
        system_files = sorted(self._folder.path.glob("system-*.jsonl"))
        return {
            self._folder.metrics_file: "",
            self._folder.validation_scores_file: "validation/",
            self._folder.checkpoints_file: "checkpoint/",
            **{path: f"system/node_{path.stem.removeprefix('system-')}/" for path in system_files},
        }

    def set_final_status(self, status: str, ended_at: float) -> None:
        """Mark the MLflow run as ended; `ended_at` is in seconds since 1970."""
        self._client.set_terminated(self.run_id, status=status, end_time=int(ended_at * 1000))


class MetricsFileUpload:
    """Uploads one metrics file; each line has a step, a time and metrics."""

    def __init__(self, path: Path, prefix: str, client: "MlflowClient", run_id: str) -> None:
        self._tail = JsonlTail(path)
        self._prefix = prefix
        self._client = client
        self._run_id = run_id
        self._pending: list[dict[str, Any]] = []
        # Skips steps that are already uploaded: by an earlier driver, or before a restarted worker repeated them.
        points = client.get_metric_history(run_id, prefix + PROGRESS_METRIC[prefix.partition("/")[0]])
        self._last_step = max((point.step for point in points), default=-1)

    def upload_next_batch(self) -> bool:
        """Upload the next lines; returns whether there were any."""
        from mlflow.entities import Metric  # noqa: PLC0415  (see connect_mlflow)

        while not self._pending and (records := self._tail.read_new()):
            self._pending = [record for record in records if record["step"] > self._last_step]
        if not self._pending:
            return False
        batch = self._pending[: max(1, METRICS_PER_BATCH // len(self._pending[0]))]
        metrics = [
            Metric(self._prefix + key, float(value), int(record["time"] * 1000), record["step"])
            for record in batch
            for key, value in record.items()
            if key not in ("step", "time") and value is not None
        ]
        self._client.log_batch(self._run_id, metrics=metrics)
        self._pending = self._pending[len(batch) :]
        self._last_step = batch[-1]["step"]
        return True


def redact_credentials(text: str) -> str:
    """Remove user and password from the URIs in a text."""
    return CREDENTIALS.sub("", text)


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, str(value)))
    return pairs
