"""A training's files -> its MLflow run, off the step path.

`metrics.jsonl` and `system-*.jsonl` are what counts; a thread carries their lines to the tracking server. A server that
hangs or is down only delays them: each is sent again as it was, with the time it was written, which the server's store
knows for the same point. Nothing here makes a training wait for more than a few seconds, or fail.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_json
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.jsonl_tail import POLL_SECONDS
from instruct_ray.tracking.mlflow_client import tracking_uri
from instruct_ray.tracking.uploader import MlflowUploader, redact_credentials

# In a run's folder: which MLflow run it is, and whether that has everything.
RECORD = "mlflow.json"
# How long the start of a training waits for a server's first answer, and its end for a server that has gone silent.
START_SECONDS = 10.0
FINISH_SECONDS = 10.0
# One request; MLflow's own retries would keep a thread busy for minutes after the server is back.
REQUEST_SECONDS = 10
MAX_RETRY_SECONDS = 10.0


class TrackingRecord(BaseModel):
    """What `mlflow.json` holds."""

    model_config = ConfigDict(frozen=True)

    run_id: str | None = None
    """None until a server was reached."""
    token: str = ""
    """Tag of the run, so that it is found if the answer to its creation was lost."""
    ending: str | None = None
    """FINISHED, FAILED or KILLED; None while it trains."""
    began: float | None = None
    """When it was first started, seconds since 1970."""
    ended: float | None = None
    is_complete: bool = True
    """Whether the server has all lines and the ending."""


class TrackedRun:
    """Carries the lines of one training to its MLflow run."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        """`say` gets what a person should know of an outage."""
        self._config = config
        self._folder = RunFolder.from_config(config)
        self._say = say
        self._uri = redact_credentials(tracking_uri(config))
        self._record = load_tracking_record(config)
        self._changing = threading.Lock()
        token, began = self._record.token or uuid.uuid4().hex, self._record.began or time.time()
        self._change(token=token, began=began, is_complete=False)
        self._carrier: MlflowUploader | None = None
        self._settled = threading.Event()
        self._wake = threading.Event()
        self._is_starting = True
        self._is_abandoned = False
        self._problem: Exception | None = None
        self._last_answer = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    @property
    def id(self) -> str | None:
        """The MLflow run's id; None while no server was reached."""
        return self._record.run_id

    def start(self) -> None:
        """Begin to follow, the run being under way; waits a few seconds for the server, and goes on without it.

        Raises:
            InputError: the server answers that it lets this user in not at all (401) or not here (403).
        """
        self._change(ending=None, ended=None)
        self._connect()

    def resume_upload(self) -> bool:
        """As `start` and `finish` of a run that ended before."""
        self._connect()
        return self.finish(self._record.ending or "FINISHED")

    def _connect(self) -> None:
        self._thread.start()
        if not self._settled.wait(START_SECONDS):
            self._say(f"tracking: {self._uri} has not answered for {START_SECONDS:.0f} s; training goes on without it")
        self._is_starting = False
        if self._problem is not None and _is_auth_error(self._problem):
            raise InputError(
                f"registry.uri: {self._uri} refuses ({_reason(self._problem)}); set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )

    def finish(self, ending: str) -> bool:
        """End the run as FINISHED, FAILED or KILLED and wait for what is left to arrive, as long as the server answers.
        Returns whether all did; if not, says how to complete it."""
        self._change(ending=ending, ended=self._record.ended or time.time())
        self._last_answer = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - self._last_answer < FINISH_SECONDS:
            self._wake.set()
            self._thread.join(POLL_SECONDS)
        self._is_abandoned = True
        if not self._record.is_complete:
            problem = "no answer" if self._problem is None else _reason(self._problem)
            self._say(
                f"tracking is incomplete: {self._uri}: {problem}; all metrics are in {self._folder.path}; "
                "`instruct-ray tune` with the same config completes it, and so does jobs.register"
            )
        return self._record.is_complete

    def _change(self, **values: Any) -> None:
        """Both threads do."""
        with self._changing:
            self._record = self._record.model_copy(update=values)
            atomic_write_json(self._folder.path / RECORD, self._record.model_dump(mode="json"))

    def _work(self) -> None:
        delay = POLL_SECONDS
        with _short_http_timeouts():
            while not self._is_abandoned and not self._record.is_complete:
                try:
                    self._carry()
                    self._on_answer()
                    delay = POLL_SECONDS
                except Exception as error:  # whatever a server or a database does, training goes on
                    self._on_problem(error)
                    delay = min(2 * delay, MAX_RETRY_SECONDS)
                self._wake.wait(delay)
                self._wake.clear()

    def _carry(self) -> None:
        if self._carrier is None:
            found = self._record
            self._carrier = MlflowUploader(self._config, found.run_id, found.token, found.began, self._on_answer)
            self._change(run_id=self._carrier.run_id)
        # Read before the lines are: what is written before the ending is sent before it.
        ending, ended = self._record.ending, self._record.ended
        self._carrier.upload_new_lines()
        if ending is not None and ended is not None:
            self._carrier.end(ending, ended)
            self._change(is_complete=True)

    def _on_answer(self) -> None:
        self._last_answer = time.monotonic()
        if self._problem is not None:
            self._say(f"tracking: {self._uri} answers again")
        self._problem = None
        self._settled.set()

    def _on_problem(self, error: Exception) -> None:
        is_new = self._problem is None
        self._problem = error
        # `start` raises it.
        self._is_abandoned |= self._is_starting and _is_auth_error(error)
        self._settled.set()
        if is_new and not self._is_abandoned:
            self._say(f"tracking: {self._uri}: {_reason(error)}; training goes on, its metrics wait in its folder")


def load_tracking_record(config: Config) -> TrackingRecord:
    """What is known of a run's MLflow run."""
    path = RunFolder.from_config(config).path / RECORD
    return TrackingRecord.model_validate_json(path.read_text()) if path.is_file() else TrackingRecord()


def finish_pending_upload(config: Config, say: Callable[[str], None]) -> str | None:
    """Send what an outage kept from the server of a run that has ended; returns the MLflow run's id, None if there is
    none yet.

    Raises:
        InputError: the server refuses this user.
    """
    record = load_tracking_record(config)
    if record.is_complete:
        return record.run_id
    tracked = TrackedRun(config, say)
    tracked.resume_upload()
    return tracked.id


@contextmanager
def _short_http_timeouts() -> Iterator[None]:
    """Let MLflow give up on a request soon; it reads this at every one. Uploads, in other arrows, have their time."""
    brief = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_SECONDS), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    before = {name: os.environ.get(name) for name in brief}
    os.environ.update(brief)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _is_auth_error(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415  (see connect)

    return isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403)


def _reason(error: Exception) -> str:
    """What an error says, in one short line without the page that a proxy may have sent."""
    said, _, _ = str(error).partition(". Response body")
    return redact_credentials(" ".join(said.split()))[:200]
