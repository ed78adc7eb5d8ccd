"""An MLflow run on a server that answers: found or created, and sent the lines of a training's files, each once."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_ray.config.schema import Config
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.jsonl_tail import JsonlTail
from instruct_ray.tracking.mlflow_client import connect_mlflow, get_or_create_experiment, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


# Tag of the run, so that it is found even if the answer to its creation was lost.
RUN_KEY_TAG = "instruct_ray.token"
# MLflow takes 1000.
METRICS_PER_BATCH = 800
PARAMS_PER_BATCH = 100
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")

# A metric that every line of a file has, by the first part of its names: it tells how far the server is.
PROGRESS_METRIC = {"": "lr", "validation": "loss", "system": "cpu_utilization_percentage"}


class MlflowUploader:
    """The MLflow run on a server that answered, and how far it has the lines."""

    def __init__(
        self, config: Config, run_id: str | None, token: str, began: float | None, on_answer: Callable[[], None]
    ) -> None:
        """`run_id` is what the run was known as before, `token` and `began` what it is marked with when it is created;
        `on_answer` is called when a request succeeds."""
        self._client = connect_mlflow(tracking_uri(config))
        # What it would say of an outage, with a traceback, is said here.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self._folder = RunFolder.from_config(config)
        self._on_answer = on_answer
        found = self._find_or_create(config, run_id, token, began)
        self.run_id = str(found.info.run_id)
        self._log_config(config, found.data.params)
        self._client.update_run(self.run_id, status="RUNNING")
        self._feeds: dict[Path, MetricsFileUpload] = {}

    def _find_or_create(self, config: Config, run_id: str | None, token: str, began: float | None) -> "Run":
        from mlflow.exceptions import MlflowException  # noqa: PLC0415  (see connect)

        experiment = get_or_create_experiment(self._client, config)
        found = self._client.search_runs([experiment], f"tags.`{RUN_KEY_TAG}` = '{token}'", max_results=1)
        if found:
            return found[0]
        if run_id is not None:
            try:
                return self._client.get_run(run_id)
            except MlflowException as error:
                # It was made elsewhere: registry.uri names another server now, which gets everything.
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        start = None if began is None else int(began * 1000)
        return self._client.create_run(experiment, start, {RUN_KEY_TAG: token}, config.run.name)

    def _log_config(self, config: Config, known: dict[str, str]) -> None:
        from mlflow.entities import Param  # noqa: PLC0415  (see connect)

        values = _flatten(config.model_dump(mode="json", exclude={"serving"}))
        params = [Param(key, redact_credentials(value)) for key, value in values if key not in known]
        for start in range(0, len(params), PARAMS_PER_BATCH):
            self._client.log_batch(self.run_id, params=params[start : start + PARAMS_PER_BATCH])

    def upload_new_lines(self) -> None:
        """Send what is new in the files."""
        # As MLflow names what it shows as system metrics.
        system = {path: f"system/node_{path.stem.removeprefix('system-')}/" for path in _system_files(self._folder)}
        for path, prefix in {
            self._folder.metrics_file: "",
            self._folder.validation_scores_file: "validation/",
            **system,
        }.items():
            if path not in self._feeds and path.is_file():
                self._feeds[path] = MetricsFileUpload(path, prefix, self._client, self.run_id)
        for feed in self._feeds.values():
            while feed.upload_next_batch():
                self._on_answer()

    def end(self, ending: str, ended: float) -> None:
        """Say how it ended, and when."""
        self._client.set_terminated(self.run_id, status=ending, end_time=int(ended * 1000))


class MetricsFileUpload:
    """One file of lines on its way; a line is a step and its metrics."""

    def __init__(self, path: Path, prefix: str, client: "MlflowClient", run_id: str) -> None:
        self._tail = JsonlTail(path)
        self._prefix = prefix
        self._client = client
        self._run_id = run_id
        self._waiting: list[dict[str, Any]] = []
        # Neither are steps sent again that a restarted worker does again, nor what an earlier driver sent.
        points = client.get_metric_history(run_id, prefix + PROGRESS_METRIC[prefix.partition("/")[0]])
        self._last_step = max((point.step for point in points), default=-1)

    def upload_next_batch(self) -> bool:
        """Send the next lines; returns whether there were any."""
        from mlflow.entities import Metric  # noqa: PLC0415  (see connect)

        while not self._waiting and (records := self._tail.read_new()):
            self._waiting = [record for record in records if record["step"] > self._last_step]
        if not self._waiting:
            return False
        batch = self._waiting[: max(1, METRICS_PER_BATCH // len(self._waiting[0]))]
        metrics = [
            Metric(self._prefix + key, float(value), int(record["time"] * 1000), record["step"])
            for record in batch
            for key, value in record.items()
            if key not in ("step", "time") and value is not None
        ]
        self._client.log_batch(self._run_id, metrics=metrics)
        self._waiting = self._waiting[len(batch) :]
        self._last_step = batch[-1]["step"]
        return True


def _system_files(folder: RunFolder) -> list[Path]:
    return sorted(folder.path.glob("system-*.jsonl"))


def redact_credentials(text: str) -> str:
    """Text without the user and password of a URI."""
    return CREDENTIALS.sub("", text)


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, str(value)))
    return pairs
