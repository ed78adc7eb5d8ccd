"""Replicas that are killed at random: a complete answer is right, and one that was cut never looks complete."""

import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from ray import serve

from instruct_ray.cli.stages.serve import start_endpoint
from instruct_ray.config.schema import Config
from tests.fakes import ignore_status
from tests.serving.endpoint import URL, client
from tests.serving.load import Outcomes, find_serve_processes, make_request, send

PATH = f"{URL}/chat/completions"
NUM_CLIENTS, NUM_TOKENS = 6, 60
MINUTES_OF_KILLS = 3.0
SECONDS_BETWEEN_KILLS = (5.0, 15.0)


@pytest.fixture
def two_replicas(endpoint_config: Config) -> Iterator[Config]:
    """An endpoint with two replicas, and room for all clients."""
    serving = endpoint_config.serving.model_copy(
        update={"num_replicas": 2, "also_serve": (), "max_queued_requests": 64}
    )
    config = endpoint_config.model_copy(update={"serving": serving})
    start_endpoint(config, ignore_status)
    yield config
    serve.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_cut_answer_looks_complete_while_replicas_are_killed(two_replicas: Config) -> None:
    request = make_request(two_replicas, NUM_TOKENS)
    expected = client.post(PATH, json=request).json()["choices"][0]["message"]["content"]
    end, outcomes, kills, lock = time.monotonic() + 60 * MINUTES_OF_KILLS, Outcomes(), list[float](), threading.Lock()

    def load(number: int) -> None:
        while time.monotonic() < end:
            is_streaming = bool(number % 2)
            outcome = send(client, PATH, request | {"stream": is_streaming}, expected)
            with lock:
                outcomes.count(outcome, stream=is_streaming)
            if outcome in ("refused", "unavailable"):
                time.sleep(0.2)

    def kill(chance: random.Random) -> None:
        while (wait := chance.uniform(*SECONDS_BETWEEN_KILLS)) < end - time.monotonic():
            time.sleep(wait)
            if replicas := find_serve_processes("ModelReplica"):
                try:
                    chance.choice(replicas).send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
                kills.append(time.monotonic())

    with ThreadPoolExecutor(NUM_CLIENTS + 1) as pool:
        tasks = [pool.submit(load, number) for number in range(NUM_CLIENTS)] + [pool.submit(kill, random.Random(0))]
        for task in tasks:
            task.result()
    print(f"{len(kills)} kills in {MINUTES_OF_KILLS:g} minutes: {outcomes}")
    assert len(kills) >= 5
    allowed = {"complete", "refused", "unavailable", "failed"}
    assert outcomes.bodies.keys() <= allowed and outcomes.streams.keys() <= allowed | {"broken"}
    assert outcomes.bodies["complete"] > 10 * outcomes.bodies["failed"] and outcomes.streams["complete"] > 0
    # A request fails only if the replica of its second attempt was killed too.
    assert outcomes.bodies["failed"] <= len(kills)
    deadline = time.monotonic() + 120
    while send(client, PATH, request, expected) != "complete":
        assert time.monotonic() < deadline, "the endpoint does not recover"
        time.sleep(1)
