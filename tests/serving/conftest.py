"""The endpoint of a tiny version, on Ray Serve, which needs an API key."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from ray import serve

from instruct_ray.cli.stages.serve import start_endpoint
from instruct_ray.config.schema import Config
from instruct_ray.config.serving import ServingConfig
from instruct_ray.serving.api_keys import hash_key
from tests.fakes import ignore_status
from tests.serving import calculator
from tests.serving.endpoint import KEY, PORT, URL
from tests.serving.versions import Versions


@pytest.fixture(scope="module")
def endpoint_config(registered: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A registered run whose endpoint needs an API key."""
    keys_file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys_file.write_text(f"- {{name: tests, sha256: {hash_key(KEY)}}}\n")
    serving = ServingConfig(
        port=PORT, max_new_tokens=400, max_batch_size=4, max_queued_requests=4, follow_seconds=0.5,
        max_body_bytes=100_000, api_keys_file=keys_file, also_serve=("base", "previous"),
        feedback_file=keys_file.with_name("triples.jsonl"),
    )  # fmt: skip
    return registered.model_copy(update={"serving": serving})


@pytest.fixture(scope="module")
def endpoint(endpoint_config: Config) -> Iterator[openai.OpenAI]:
    """A client of the endpoint that serves the version."""
    start_endpoint(endpoint_config, ignore_status)
    yield openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
    serve.shutdown()


@pytest.fixture(scope="session")
def calculator_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an endpoint that calls tools; its marks of calls are special tokens, which decoding would skip."""
    folder, num_threads = tmp_path_factory.mktemp("calculator"), torch.get_num_threads()
    # Threads that wait for each other on a busy machine take longer than one.
    torch.set_num_threads(1)
    try:
        renderer = calculator.tune(folder, calculator.TOOL, are_special=True)
    finally:
        torch.set_num_threads(num_threads)
    with calculator.serve(folder, renderer, "calculator") as address:
        yield address


@pytest.fixture
def versions(registered: Config, tmp_path: Path) -> Versions:
    """A registry with version 1 of the registered run, and room for more."""
    return Versions(registered, tmp_path)
