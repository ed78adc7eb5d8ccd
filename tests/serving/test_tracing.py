"""Traces of requests, sent to a real MLflow server: what they hold, and that requests never wait for them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from opentelemetry.sdk.trace.export import SpanExportResult

from instruct_ray.config.serving import TracingConfig
from instruct_ray.errors import InputError
from instruct_ray.serving import request_traces, trace_exporter
from instruct_ray.serving.api_keys import hash_key
from instruct_ray.serving.replica_messages import ReplicaChunk, RequestError
from instruct_ray.serving.trace_exporter import MlflowSpanExporter, check_exporter_installed
from instruct_ray.tracking.mlflow_client import connect_mlflow
from tests.mlflow_server import MlflowServer
from tests.serving.fake_replica import CHAT, END, HI, START, FakeReplica, ask, with_key, write_keys

EXPERIMENT = "served"
SECRET = "the secret of the request"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _export_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_traces, "EXPORT_DELAY_MS", 50)


def read_spans(server: MlflowServer, experiment: str, num_expected: int) -> list[Any]:
    """The spans in an experiment, oldest first, once there are as many as expected."""
    client, end = connect_mlflow(server.uri), time.monotonic() + 60
    traces: list[Any] = []
    while len(traces) < num_expected and time.monotonic() < end:
        time.sleep(0.2)
        if (found := client.get_experiment_by_name(experiment)) is not None:
            traces = mlflow.search_traces(locations=[found.experiment_id], return_type="list")
    assert len(traces) == num_expected
    return sorted((trace.data.spans[0] for trace in traces), key=lambda span: span.start_time_ns)


# Over 20 seconds on a busy machine: an MLflow server starts.
def test_each_request_is_a_trace(server: MlflowServer, tmp_path: Path) -> None:
    keys_file = write_keys(tmp_path / "keys.yaml", {"name": "alice", "sha256": hash_key("a")})
    tracing = {"uri": server.uri, "experiment": EXPERIMENT}
    question = {"model": "m", "messages": [{"role": "user", "content": SECRET}]}
    answers = [
        [START, HI, ReplicaChunk(finish_reason="stop", num_tokens=1, num_cached_tokens=2)],
        [START, HI, END],
        [START, HI, ValueError("x")],
        [RequestError(404, "no such model", "model", "model_not_found")],
    ]
    requests: list[dict[str, Any]] = [question, question | {"stream": True}, question | {"stream": True}, question]
    sent = [with_key("a") | {"json": request} for request in requests]
    ask(FakeReplica(answers), *sent, serving={"tracing": tracing, "api_keys_file": str(keys_file)})
    complete, streamed, broken, refused = read_spans(server, EXPERIMENT, 4)
    assert SECRET not in str([one.to_dict() for one in (complete, streamed, broken, refused)])
    expected = {
        "gen_ai.request.model": "m", "gen_ai.response.model": "m/1", "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2, "gen_ai.usage.cache_read.input_tokens": 2,
        "http.response.status_code": 200, "instruct_ray.api_key": "alice",
    }  # fmt: skip
    assert complete.attributes.items() >= expected.items()
    assert "gen_ai.response.time_to_first_chunk" not in complete.attributes
    assert streamed.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert (complete.span_type, complete.status.status_code.value) == ("CHAT_MODEL", "UNSET")
    assert streamed.attributes["gen_ai.usage.output_tokens"] == 2
    assert (broken.status.status_code.value, broken.attributes["error.type"]) == ("ERROR", "ValueError")
    assert refused.attributes.items() >= {"error.type": "model_not_found", "http.response.status_code": 404}.items()


def test_text_is_recorded_only_if_it_is_wanted(server: MlflowServer) -> None:
    tracing = {"uri": server.uri, "experiment": "with text", "record_text": True}
    long = {"model": "m", "messages": [{"role": "user", "content": SECRET}, {"role": "user", "content": "x" * 100_000}]}
    ask(FakeReplica([[START, HI, END]]), {"json": long}, serving={"tracing": tracing})
    [span] = read_spans(server, "with text", 1)
    text = str(span.to_dict())
    assert SECRET in text and "Hi" in text and len(text) < 100_000


def test_server_that_is_down_or_hangs_delays_no_request(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_exporter, "TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(request_traces, "MAX_QUEUED_SPANS", 128)
    server.pause()
    try:
        started = time.monotonic()
        answers, requests = [[START, HI, END] for _ in range(300)], [{"json": CHAT}] * 300
        serving = {"tracing": {"uri": server.uri, "experiment": EXPERIMENT}}
        assert {one.status_code for one in ask(FakeReplica(answers), *requests, serving=serving)} == {200}
        # One request that waited would take longer.
        assert time.monotonic() - started < 10
    finally:
        server.resume()
    nowhere = MlflowSpanExporter(TracingConfig(uri="http://127.0.0.1:9"))
    assert nowhere.export([]) is SpanExportResult.FAILURE


def test_share_of_the_requests_is_traced() -> None:
    tracer = request_traces.RequestTracer(TracingConfig(uri="http://127.0.0.1:9", sample_share=0.25))
    traces = [tracer._tracer.start_span("x") for _ in range(2000)]
    assert 400 < sum(span.is_recording() for span in traces) < 600


def test_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_exporter_installed()
    monkeypatch.setattr(trace_exporter, "EXPORTER_MODULE", "opentelemetry.exporter.nothing.here")
    with pytest.raises(InputError, match=r"pip install 'instruct-ray\[tracing\]'"):
        check_exporter_installed()
