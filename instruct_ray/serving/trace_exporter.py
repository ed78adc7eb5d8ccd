"""gateway: sends finished spans to an MLflow server, in the thread of the span processor."""

import base64
import logging
import os
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import httpx
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from instruct_ray.config.serving import TracingConfig
from instruct_ray.errors import InputError, one_line

logger = logging.getLogger(__name__)

EXPORTER_MODULE = "opentelemetry.exporter.otlp.proto.http"
TIMEOUT_SECONDS = 10.0
# While a server is down its traces are dropped; this often the log says so.
LOG_SECONDS = 60.0
EXPERIMENTS = "/api/2.0/mlflow/experiments"
EXPERIMENT_HEADER = "x-mlflow-experiment-id"


def check_exporter_installed() -> None:
    """Check that the package that sends spans is there.

    Raises:
        InputError: it is not.
    """
    try:
        is_installed = find_spec(EXPORTER_MODULE) is not None
    except ModuleNotFoundError:
        is_installed = False
    if not is_installed:
        raise InputError("serving.tracing needs a package that is not here; pip install 'instruct-ray[tracing]'")


class MlflowSpanExporter(SpanExporter):
    """Sends spans by OTLP to the `/v1/traces` of a server, into an experiment that is made if there is none.

    It asks for the experiment with the first spans, so that a server that is down stops no endpoint. MLflow's own
    client would do the same, but takes seconds to import.
    """

    def __init__(self, tracing: TracingConfig) -> None:
        self._uri, self._experiment = tracing.uri.rstrip("/"), tracing.experiment
        self._exporter: SpanExporter | None = None
        self._logged_at = float("-inf")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; those that can't be sent are dropped."""
        try:
            if self._exporter is None:
                self._exporter = self._connect()
            result = self._exporter.export(spans)
        except (httpx.HTTPError, KeyError, ValueError) as error:
            self._log(f"{self._uri}: {one_line(error)}")
            return SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            # The experiment may have been deleted, or the server replaced.
            self._exporter.shutdown()
            self._exporter = None
            self._log(f"{self._uri} did not take {len(spans)} spans")
        return result

    def shutdown(self) -> None:
        """End the connection."""
        if self._exporter is not None:
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        return True

    def _connect(self) -> SpanExporter:
        """Find the experiment.

        Raises:
            httpx.HTTPError: the server does not respond, or refuses.
        """
        # Here: an optional package.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        headers = _authorization()
        with httpx.Client(base_url=self._uri, headers=headers, timeout=TIMEOUT_SECONDS) as client:
            headers[EXPERIMENT_HEADER] = self._find_experiment(client)
        return OTLPSpanExporter(f"{self._uri}/v1/traces", headers=headers, timeout=TIMEOUT_SECONDS)

    def _find_experiment(self, client: httpx.Client) -> str:
        response = client.get(f"{EXPERIMENTS}/get-by-name", params={"experiment_name": self._experiment})
        if response.status_code == 404:
            created: Mapping[str, Any] = (
                client.post(f"{EXPERIMENTS}/create", json={"name": self._experiment}).raise_for_status().json()
            )
            return str(created["experiment_id"])
        return str(response.raise_for_status().json()["experiment"]["experiment_id"])

    def _log(self, reason: str) -> None:
        if time.monotonic() - self._logged_at > LOG_SECONDS:
            self._logged_at = time.monotonic()
            logger.warning("traces are lost: %s", reason)


def _authorization() -> dict[str, str]:
    """The header made of the environment variables that MLflow's clients read."""
    name, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if name and password:
        return {"authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}
    return {"authorization": f"Bearer {token}"} if token else {}
