"""No request that the OpenAPI schema describes, or nearly describes, is a server error. The engine is real."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode

from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.inference.engines import create_engine
from instruct_ray.serving.gateway import Gateway
from instruct_ray.serving.loaded_version import LoadedVersion
from tests.serving.local_replica import INFO, LocalReplica

NUM_CASES, NUM_SLOW_CASES = 20, 850
CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]


@pytest.fixture(scope="module")
def api_schema(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The schema of a gateway in this process."""
    feedback_file = tmp_path_factory.mktemp("feedback") / "triples.jsonl"
    serving = ServingConfig(allow_without_key=True, feedback_file=feedback_file)
    renderer = derive_renderer(base_folder, None)
    engine = create_engine(base_folder, renderer.contract, serving)
    replica: Any = LocalReplica(LoadedVersion(INFO, renderer, engine), "champion", max_new_tokens=2)
    yield schemathesis.openapi.from_asgi("/openapi.json", Gateway(replica, serving).__serve_build_asgi_app__())
    engine.close()


def check(case: Any) -> None:
    if isinstance(case.body, dict) and "model" in case.body:
        # Otherwise nearly every case ends at its name.
        case.body["model"] = "m"
    response = case.call()
    case.validate_response(response, checks=[not_a_server_error])
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("num_cases", [NUM_CASES, pytest.param(NUM_SLOW_CASES, marks=pytest.mark.slow)])
def test_no_case_is_a_server_error(api_schema: Any, num_cases: int) -> None:
    operations = [result.ok() for result in api_schema.get_all_operations()]
    paths = {operation.path for operation in operations}
    assert paths >= {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/playground/triples"}
    # The page is no API.
    assert "/" not in paths
    for operation in operations:
        has_body = operation.method == "post"
        options = settings(
            max_examples=num_cases if has_body else 10, suppress_health_check=CHECKS, database=None, derandomize=True
        )
        # Without a body or a parameter nothing can be wrong.
        for mode in GenerationMode if has_body else [GenerationMode.POSITIVE]:
            options(given(case=operation.as_strategy(generation_mode=mode))(check))()
