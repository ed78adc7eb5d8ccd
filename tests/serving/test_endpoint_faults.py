"""The endpoint when clients leave and when its replica dies."""

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.run.folder import RunFolder
from tests.serving.endpoint import URL, client
from tests.serving.load import find_serve_processes

NUM_CLIENTS = 8
MAX_SECONDS_TO_FREE = 2.0


@pytest.fixture
def long_request(endpoint: openai.OpenAI, endpoint_config: Config) -> dict[str, Any]:
    """A request whose answer never stops before its limit."""
    contract = PromptContract.load(RunFolder.from_config(endpoint_config).contract_file)
    messages = [{"role": "user", "content": "hello"}]
    bias = {str(contract.stop_token_id): -100}
    return {"model": "tiny", "messages": messages, "max_tokens": 400, "logit_bias": bias, "temperature": 0}


def test_clients_that_leave_free_their_places(long_request: dict[str, Any]) -> None:
    def leave(_: int) -> None:
        with client.stream("POST", f"{URL}/chat/completions", json=long_request | {"stream": True}) as response:
            next(response.iter_lines())

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        list(pool.map(leave, range(NUM_CLIENTS)))
    started = time.monotonic()
    response = client.post(f"{URL}/chat/completions", json=long_request | {"max_tokens": 1})
    assert response.status_code == 200
    assert time.monotonic() - started < MAX_SECONDS_TO_FREE


# Over 20 seconds: a replica starts again, with the libraries of a new process.
def test_requests_of_a_replica_that_dies_are_answered_by_the_next_one(long_request: dict[str, Any]) -> None:
    has_begun = threading.Event()

    def ask() -> httpx2.Response:
        return client.post(f"{URL}/chat/completions", json=long_request, timeout=120)

    def read_stream() -> list[str]:
        lines = []
        with client.stream("POST", f"{URL}/chat/completions", json=long_request | {"stream": True}) as response:
            for line in response.iter_lines():
                lines.append(line)
                has_begun.set()
        return [line for line in lines if line]

    with ThreadPoolExecutor(2) as pool:
        complete, streamed = pool.submit(ask), pool.submit(read_stream)
        assert has_begun.wait(30)
        [replica] = find_serve_processes("ModelReplica")
        replica.send_signal(signal.SIGKILL)
        # Text of two replicas is never joined.
        assert json.loads(streamed.result()[-1].removeprefix("data: "))["error"]["type"] == "server_error"
        response = complete.result()
    assert response.status_code == 200
    assert response.json()["usage"]["completion_tokens"] == 400
