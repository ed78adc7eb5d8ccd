"""The endpoint under steady mixed load: its memory stays flat, and nothing fails."""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
from ray import serve

from instruct_ray.cli.stages.evaluate import run_evaluate
from instruct_ray.cli.stages.register import run_register
from instruct_ray.cli.stages.serve import start_endpoint
from instruct_ray.config.serving import ServingConfig
from tests.drill.harness import CaseResult, DrillHarness
from tests.serving.load import find_serve_processes, send

PORT, NUM_CLIENTS, SAMPLE_SECONDS = 8765, 6, 5.0
# Of load before memory is measured: caches fill, and the heap gets as large as its busiest moment needs.
WARM_UP_SECONDS = 300.0
# What the memory of a process may grow by, from the first quarter of the time to the last one.
MAX_GROWTH, MAX_GROWTH_BYTES = 0.05, 24 * 2**20
PROCESSES = ("ModelReplica", "Gateway", "ProxyActor")
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


def soak_endpoint(harness: DrillHarness) -> CaseResult:
    """Requests of many kinds for `harness.soak_minutes`; some clients leave in the middle of a stream."""
    with _serve(harness) as url:
        start, samples = time.monotonic() + WARM_UP_SECONDS, dict[str, list[int]]()
        end = start + 60 * harness.soak_minutes
        outcomes: list[str] = []
        with ThreadPoolExecutor(NUM_CLIENTS + 1) as pool:
            tasks = [pool.submit(_load, url, end, number, outcomes.append) for number in range(NUM_CLIENTS)]
            tasks.append(pool.submit(_sample, start, end, samples))
            for task in tasks:
                task.result()
    failed = [outcome for outcome in outcomes if outcome not in ("complete", "refused")]
    assert not failed, f"{len(failed)} of {len(outcomes)} requests: {sorted(set(failed))}"
    growth = {name: _growth(values) for name, values in samples.items()}
    described = ", ".join(
        f"{name} {before / 2**20:.0f} -> {after / 2**20:.0f} MiB" for name, (before, after) in growth.items()
    )
    note = f"{len(outcomes)} requests in {WARM_UP_SECONDS / 60 + harness.soak_minutes:g} minutes; {described}"
    assert growth.keys() == set(PROCESSES)
    for before, after in growth.values():
        assert after - before < max(MAX_GROWTH * before, MAX_GROWTH_BYTES), note
    return CaseResult(note=note)


@contextmanager
def _serve(harness: DrillHarness) -> Iterator[str]:
    """Tune, register and serve a tiny model; yields the address of its API."""
    config = harness.prepare_run("soak")
    registry = config.registry.model_copy(update={"gate": None})
    serving = ServingConfig(port=PORT, max_new_tokens=64, also_serve=("base",), follow_seconds=1.0)
    evidence = config.evidence.model_copy(update={"max_new_tokens": 4, "num_latency_rows": 2, "num_engines": 1})
    config = config.model_copy(update={"registry": registry, "serving": serving, "evidence": evidence})
    harness.train(config)
    run_evaluate(config)
    run_register(config)
    url = start_endpoint(config, lambda message: None)
    try:
        yield url
    finally:
        serve.shutdown()


def _load(url: str, end: float, number: int, report: Callable[[str], None]) -> None:
    chance = random.Random(number)
    with httpx2.Client(timeout=120) as client:
        for count in itertools.count():
            if time.monotonic() > end:
                return
            request = _make_request(chance, f"{number}-{count}")
            if chance.random() < 0.1:
                _leave(client, url, request | {"stream": True})
            else:
                report(send(client, f"{url}/chat/completions", request, None))
            client.get(f"{url}/models")


def _make_request(chance: random.Random, unique: str) -> dict[str, Any]:
    request: dict[str, Any] = {
        "model": chance.choice(["tiny", "tiny@base"]),
        "messages": [{"role": "user", "content": "report " * chance.randrange(60) + unique}],
        "max_tokens": chance.randrange(1, 40),
        "stream": chance.random() < 0.5,
    }
    if chance.random() < 0.2:
        # A schema that no other request has, as programs make them.
        schema = SCHEMA | {"title": unique}
        json_schema = {"name": "answer", "schema": schema}
        request["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    if chance.random() < 0.2:
        request |= {"logprobs": True, "top_logprobs": 5}
    return request


def _leave(client: httpx2.Client, url: str, request: dict[str, Any]) -> None:
    with client.stream("POST", f"{url}/chat/completions", json=request) as response:
        next(response.iter_lines(), None)


def _sample(start: float, end: float, samples: dict[str, list[int]]) -> None:
    """Note the memory of each kind of process, from the start to the end."""
    time.sleep(max(0.0, start - time.monotonic()))
    while time.monotonic() < end:
        for name in PROCESSES:
            if processes := find_serve_processes(name):
                samples.setdefault(name, []).append(sum(process.memory_info().rss for process in processes))
        time.sleep(SAMPLE_SECONDS)


def _growth(values: list[int]) -> tuple[float, float]:
    """The memory in the first quarter of the time and in the last one."""
    quarter = max(1, len(values) // 4)
    return statistics.median(values[:quarter]), statistics.median(values[-quarter:])
