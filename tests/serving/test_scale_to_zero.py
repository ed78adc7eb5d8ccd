"""An endpoint that has no replica while it has no requests."""

import time
from collections.abc import Iterator

import openai
import pytest
from ray import serve

from instruct_ray.cli.stages.serve import start_endpoint
from instruct_ray.config.schema import Config
from instruct_ray.config.serving import AutoscalingConfig
from tests.fakes import ignore_status
from tests.serving.endpoint import KEY, PORT, URL, client

# A replica is stopped, and started again by a request.
pytestmark = pytest.mark.slow
PROBES = ("/health", "/health/generate", "/metrics", "/v1/models")
MAX_SECONDS = 120.0


def count_replicas() -> int:
    deployment = serve.status().applications["tiny"].deployments["ModelReplica"]
    return sum(number for state, number in deployment.replica_states.items() if state != "STOPPING")


@pytest.fixture
def scaled_endpoint(endpoint_config: Config) -> Iterator[openai.OpenAI]:
    limits = AutoscalingConfig(min_replicas=0, max_replicas=1, upscale_delay_seconds=0, downscale_delay_seconds=2)
    serving = endpoint_config.serving.model_copy(update={"autoscaling": limits, "also_serve": ()})
    start_endpoint(endpoint_config.model_copy(update={"serving": serving}), ignore_status)
    yield openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=MAX_SECONDS)
    serve.shutdown()


def test_probes_start_no_replica_and_a_request_does(scaled_endpoint: openai.OpenAI) -> None:
    address = f"http://127.0.0.1:{PORT}"
    assert client.get(f"{address}/health").json()["version"] == "1"
    deadline = time.monotonic() + MAX_SECONDS
    while count_replicas():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    for _ in range(8):
        assert [client.get(f"{address}{path}").status_code for path in PROBES] == [200] * len(PROBES)
        assert count_replicas() == 0
        time.sleep(0.5)
    assert client.get(f"{address}/health/generate").json() == {"status": "idle"}
    answer = scaled_endpoint.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=4
    )
    # The model may answer with its stop token alone.
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert count_replicas() == 1
