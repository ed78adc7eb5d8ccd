"""What the gateway says of itself: health, versions and metrics. Its replica is a fake."""

from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from instruct_ray.serving import served_version
from instruct_ray.serving.api_keys import hash_key
from instruct_ray.serving.replica_messages import ReplicaChunk
from tests.serving.fake_replica import END, FOREVER, HI, INFO, PATH, START, FakeReplica, ask, with_key, write_keys

HEALTH, GET_MODELS, GET_METRICS = ({"method": "GET", "url": url} for url in ("/health", "/v1/models", "/metrics"))


def test_health_is_answered_while_replicas_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_version, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(served_version, "MAX_WAIT_SECONDS", 0.1)
    replica = FakeReplica([])

    def be_busy() -> None:
        replica.info.value = FOREVER

    first, second = ask(replica, HEALTH, HEALTH, between=be_busy)
    assert first.json() == second.json() and first.json().items() >= {"version": "1", "not_followed": None}.items()
    monkeypatch.setattr(served_version, "MAX_AGE_SECONDS", 0.0)
    replica.info.value = INFO
    first, second = ask(replica, HEALTH, HEALTH, between=be_busy)
    assert (first.status_code, second.status_code) == (200, 503)


@pytest.mark.parametrize("failure", [ActorDiedError(), DeploymentUnavailableError("deployment")], ids=type)
def test_health_fails_without_a_replica(failure: Exception) -> None:
    health, models, metrics = ask(FakeReplica([], info=failure), HEALTH, GET_MODELS, GET_METRICS)
    for response in (health, models):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
    # The requests that failed are counted all the same.
    assert metrics.status_code == 200 and 'route="/health",status="503"' in metrics.text


def test_version_is_asked_once_for_many_requests() -> None:
    replica = FakeReplica([])
    ask(replica, *[HEALTH] * 5, GET_MODELS, GET_METRICS)
    assert replica.info.num_calls == 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ([START, HI, END], 200),
        ([BackPressureError(1, 1)], 200),
        ([START, ReplicaChunk(finish_reason="error")], 503),
        ([RayTaskError("answer", "traceback", ValueError("x")).as_instanceof_cause()], 503),
        ([ActorDiedError()], 503),
    ],
    ids=str,
)
def test_probe_is_red_on_an_engine_that_fails_and_not_on_a_busy_one(answer: list[Any], status: int) -> None:
    [response] = ask(FakeReplica([answer]), {"method": "GET", "url": "/health/generate"})
    assert response.status_code == status


def test_metrics_count_by_route_status_and_key(tmp_path: Path) -> None:
    keys_file = write_keys(tmp_path / "keys.yaml", {"name": "a", "sha256": hash_key("a"), "requests_per_minute": 2})
    scrape = with_key("a") | {"method": "GET", "url": "/metrics"}
    requests = [with_key("a"), with_key("a"), with_key("a"), with_key("no"), with_key("a") | {"url": "/x/y"}, scrape]
    replica = FakeReplica([[START, HI, END], [START, ValueError("x")]])
    *_, response = ask(replica, *requests, serving={"api_keys_file": str(keys_file)})
    counts = {
        (one.labels["route"], one.labels["status"], one.labels["key"]): one.value
        for family in text_string_to_metric_families(response.text)
        for one in family.samples
        if one.name == "instruct_ray_requests_total"
    }
    assert counts == {
        (PATH, "200", "a"): 1, (PATH, "500", "a"): 1, (PATH, "429", "a"): 1, (PATH, "401", ""): 1,
        ("other", "429", "a"): 1,
    }  # fmt: skip
