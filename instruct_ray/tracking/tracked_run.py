"""The MLflow run of a training run, updated by a background thread.

The files `metrics.jsonl` and `system-*.jsonl` are the source of truth; the thread uploads their lines. An outage of the
server only delays the upload: a line is sent again with its original step and time, which the server stores once.
Training never waits more than a few seconds for the server, and never fails because of it.
"""

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError, one_line
from instruct_ray.files import atomic_write_json
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.calls import is_auth_error, short_http_timeouts, short_reason
from instruct_ray.tracking.jsonl_tail import POLL_SECONDS
from instruct_ray.tracking.mlflow_client import tracking_uri
from instruct_ray.tracking.uploader import MlflowUploader, redact_credentials

# In a run's folder: the TrackingRecord.
RECORD_FILE = "mlflow.json"
# How long the start of training waits for the first response, and its end for a server that stopped responding.
START_SECONDS = 10.0
FINISH_SECONDS = 10.0
# Timeout of one request. MLflow's own retries would block the thread for minutes after the server is back.
REQUEST_SECONDS = 10
MAX_RETRY_SECONDS = 10.0


class TrackingRecord(BaseModel):
    """The content of `mlflow.json`: the MLflow run, and whether everything is uploaded.

    The second names are those that earlier versions wrote.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str | None = None
    """Id of the MLflow run; None until the server has responded."""
    run_key: str | None = Field(default=None, validation_alias=AliasChoices("run_key", "token"))
    """Tag value that identifies the MLflow run even if the response to its creation was lost."""
    final_status: str | None = Field(default=None, validation_alias=AliasChoices("final_status", "ending"))
    """FINISHED, FAILED or KILLED; None while training runs."""
    started_at: float | None = Field(default=None, validation_alias=AliasChoices("started_at", "began"))
    """Time of the first start, in seconds since 1970."""
    ended_at: float | None = Field(default=None, validation_alias=AliasChoices("ended_at", "ended"))
    """Time of the end, in seconds since 1970."""
    is_uploaded: bool = Field(default=True, validation_alias=AliasChoices("is_uploaded", "is_complete"))
    """Whether the server has all lines and the final status."""


class TrackedRun:
    """Uploads the metrics of one training run to its MLflow run."""

    def __init__(self, config: Config, warn: Callable[[str], None]) -> None:
        """`warn` is called with a message when an outage begins or ends."""
        self._config = config
        self._folder = RunFolder.from_config(config)
        self._warn = warn
        self._uri = redact_credentials(tracking_uri(config))
        self._record = load_tracking_record(config)
        self._record_lock = threading.Lock()
        self._run_key = self._record.run_key or uuid.uuid4().hex
        started_at = self._record.started_at or time.time()
        self._update_record(run_key=self._run_key, started_at=started_at, is_uploaded=False)
        self._uploader: MlflowUploader | None = None
        self._first_response = threading.Event()
        self._wake = threading.Event()
        self._is_starting = True
        self._is_abandoned = False
        self._problem: Exception | None = None
        self._last_response_at = time.monotonic()
        self._thread = threading.Thread(target=self._upload_until_finished, name="tracking", daemon=True)

    @property
    def id(self) -> str | None:
        """The MLflow run's id; None until the server has responded."""
        return self._record.run_id

    def start(self) -> None:
        """Start to upload while training runs. Waits a few seconds for the server, and continues without it.

        Raises:
            InputError: the server denies access (401 or 403).
        """
        self._update_record(final_status=None, ended_at=None)
        self._connect()

    def resume_upload(self) -> bool:
        """Upload what is missing of a run that has ended; returns whether everything is uploaded.

        Raises:
            InputError: the server denies access (401 or 403).
        """
        self._connect()
        return self.finish(self._record.final_status or "FINISHED")

    def finish(self, final_status: str) -> bool:
        """End the run as FINISHED, FAILED or KILLED, and wait for the upload as long as the server responds.

        Returns whether everything is uploaded; if not, `warn` is called with what to do.
        """
        self._update_record(final_status=final_status, ended_at=self._record.ended_at or time.time())
        self._last_response_at = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - self._last_response_at < FINISH_SECONDS:
            self._wake.set()
            self._thread.join(POLL_SECONDS)
        self._is_abandoned = True
        if not self._record.is_uploaded:
            problem = "no response" if self._problem is None else short_reason(self._problem)
            self._warn(
                f"tracking is incomplete: {self._uri}: {problem}; all metrics are in {self._folder.path}; run "
                "`instruct-ray tune` again with the same config to upload the rest (`instruct-ray register` does so, "
                "too)"
            )
        return self._record.is_uploaded

    def abandon(self) -> None:
        """Stop uploading and leave the run as it is: another process has taken it over."""
        self._is_abandoned = True
        self._wake.set()

    def _connect(self) -> None:
        self._thread.start()
        if not self._first_response.wait(START_SECONDS):
            self._warn(f"tracking: no response from {self._uri} after {START_SECONDS:.0f} s; training continues")
        self._is_starting = False
        if self._problem is not None and is_auth_error(self._problem):
            raise InputError(
                f"registry.uri: {self._uri} denies access ({short_reason(self._problem)}); set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )

    def _update_record(self, **values: Any) -> None:
        """Change fields of the record; called from both threads. A storage that fails does not end training."""
        path = self._folder.path / RECORD_FILE
        with self._record_lock:
            self._record = self._record.model_copy(update=values)
            try:
                atomic_write_json(path, self._record.model_dump(mode="json"))
            except OSError as error:
                self._warn(f"tracking: {path} can't be written: {one_line(error)}; training continues")

    def _upload_until_finished(self) -> None:
        delay = POLL_SECONDS
        with short_http_timeouts(REQUEST_SECONDS):
            while not self._is_abandoned and not self._record.is_uploaded:
                try:
                    self._upload()
                    self._on_response()
                    delay = POLL_SECONDS
                except Exception as error:  # no failure of a server or a database may stop training
                    self._on_problem(error)
                    delay = min(2 * delay, MAX_RETRY_SECONDS)
                self._wake.wait(delay)
                self._wake.clear()

    def _upload(self) -> None:
        record = self._record
        if self._uploader is None:
            self._uploader = MlflowUploader(
                self._config, record.run_id, self._run_key, record.started_at, self._on_response
            )
            self._update_record(run_id=self._uploader.run_id)
        # Read before the upload: all lines written before the final status are then sent before it.
        final_status, ended_at = self._record.final_status, self._record.ended_at
        self._uploader.upload_new_lines()
        if final_status is not None and ended_at is not None:
            self._uploader.set_final_status(final_status, ended_at)
            self._update_record(is_uploaded=True)

    def _on_response(self) -> None:
        self._last_response_at = time.monotonic()
        if self._problem is not None:
            self._warn(f"tracking: {self._uri} responds again")
        self._problem = None
        self._first_response.set()

    def _on_problem(self, error: Exception) -> None:
        is_new = self._problem is None
        self._problem = error
        # `start` raises it.
        self._is_abandoned |= self._is_starting and is_auth_error(error)
        self._first_response.set()
        if is_new and not self._is_abandoned:
            self._warn(
                f"tracking: {self._uri}: {short_reason(error)}; training continues, and its metrics are uploaded when "
                "the server responds again"
            )


def load_tracking_record(config: Config) -> TrackingRecord:
    """Read the tracking record of a run; an empty one if there is none yet."""
    path = RunFolder.from_config(config).path / RECORD_FILE
    return TrackingRecord.model_validate_json(path.read_text()) if path.is_file() else TrackingRecord()


def finish_pending_upload(config: Config, warn: Callable[[str], None]) -> str | None:
    """Upload what an outage left of a run that has ended.

    Returns the MLflow run's id; None if there is no MLflow run.

    Raises:
        InputError: the server denies access.
    """
    record = load_tracking_record(config)
    if record.is_uploaded:
        return record.run_id
    tracked = TrackedRun(config, warn)
    tracked.resume_upload()
    return tracked.id
