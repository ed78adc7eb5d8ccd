"""Measures batches that requests join against batches that are answered as a whole, with short and long answers.

python -m tests.bench.bench_batching
python -m tests.bench.bench_batching --rounds 1 --requests 16     (while developing)

The same model, prompts and limits; clients send their next request as soon as one is answered, every other one long.
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.inference.batch_rules import BatchRules
from instruct_ray.inference.engine import GenerationRequest, SamplingParams
from instruct_ray.inference.transformers_engine import TransformersEngine
from tests.bench import machine
from tests.bench.examples import make_renderer, resolve_base

SOURCE = machine.ROOT / "jobs" / "data" / "incidents.jsonl"
SHORT, LONG = 8, 64
BATCH_SIZE = 8
SIDES = {"join": "requests join a running batch", "whole": "batches are answered as a whole"}


@dataclass(frozen=True)
class Timing:
    """One request."""

    num_tokens: int
    seconds: float


def load_engine(folder: Path, renderer: Renderer, side: str) -> TransformersEngine:
    """Load a model into an engine of one side."""
    # -1: answers end at their limits, whatever the model says.
    contract = replace(renderer.contract, stop_token_id=-1)

    def find_rules(model: Any) -> BatchRules:
        return replace(rules_of(model), allows_joining=side == "join")

    rules_of = BatchRules.from_model
    with patch.object(BatchRules, "from_model", find_rules):
        return TransformersEngine(folder, contract, BATCH_SIZE, prefix_cache_tokens=0)


def run(engine: TransformersEngine, prompts: Sequence[list[int]]) -> tuple[float, list[Timing]]:
    """Answer all prompts; returns the seconds of all and of each."""

    def ask(number: int) -> Timing:
        finished, num_tokens = threading.Event(), SHORT if number % 2 else LONG
        start = time.perf_counter()
        engine.submit(
            GenerationRequest(prompts[number], SamplingParams(num_tokens), lambda _: None, lambda _: finished.set())
        )
        finished.wait()
        return Timing(num_tokens, time.perf_counter() - start)

    start = time.perf_counter()
    with ThreadPoolExecutor(BATCH_SIZE) as pool:
        timings = list(pool.map(ask, range(len(prompts))))
    return time.perf_counter() - start, timings


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = machine.make_parser(__doc__)
    parser.add_argument("--requests", type=int, default=32, help="requests of a side in each round")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print its table."""
    options = parse()
    base_model = resolve_base(options.out.absolute() / "work")
    renderer = make_renderer(base_model)
    rows = [json.loads(line) for line in SOURCE.read_text().splitlines()][: options.requests]
    prompts = [renderer.prompt(renderer.messages(row["instruction"], row["input"])) for row in rows]
    facts = machine.describe_machine()
    engines = {side: load_engine(base_model.folder, renderer, side) for side in SIDES}
    measured: list[dict[str, Any]] = []
    for number in range(options.rounds + 1):
        for side, engine in engines.items():
            seconds, timings = run(engine, prompts)
            short, long = (
                statistics.median(one.seconds for one in timings if one.num_tokens == size) for size in (SHORT, LONG)
            )
            machine.log(f"{SIDES[side]}: {seconds:.1f} s, short {short:.2f} s, long {long:.2f} s")
            # The first round warms up.
            if number:
                measured.append({"side": side, "seconds": seconds, "short": short, "long": long})
    for engine in engines.values():
        engine.close()
    lines = []
    for side, name in SIDES.items():
        own = [one for one in measured if one["side"] == side]
        rate = machine.spread([options.requests / one["seconds"] for one in own])
        lines.append([name, rate, *(machine.spread([one[key] for one in own]) for key in ("short", "long"))])
    header = ["side", "requests/s", f"p50 of {SHORT} tokens, s", f"p50 of {LONG} tokens, s"]
    machine.publish("batching", options.out, facts, [machine.table(header, lines)], measured)


if __name__ == "__main__":
    machine.restart_with_environment("tests.bench.bench_batching")
    main()
