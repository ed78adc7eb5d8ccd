"""Measures the endpoint against its engine alone and against the engine's own server, and the first token of known
instructions.

python -m tests.bench.bench_endpoint
python -m tests.bench.bench_endpoint --rounds 1 --requests 8     (while developing)
.venv-vllm/bin/python -m tests.bench.bench_endpoint --engine vllm

The engine runs in this process and the endpoint on Ray Serve, and a round asks one after the other. The peer,
`transformers serve` or `vllm serve`, with its default and its best settings, has the machine to itself after that: a
server without requests can still take a core. It gets the same requests, at the highest concurrency alone.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from instruct_ray.base_model.cpu_precision import is_bf16_fast
from instruct_ray.cli import ray_session
from instruct_ray.cli.stages.serve import start_endpoint
from instruct_ray.config.schema import Config
from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.inference.engines import create_engine
from instruct_ray.run.folder import RunFolder
from tests.bench import machine
from tests.bench.endpoint_sides import EngineSide, Peer, ServerSide, run_peer
from tests.bench.examples import BASE, bench_config

SOURCE = machine.ROOT / "jobs" / "data" / "incidents.jsonl"
CONCURRENCY = (1, 8, 16)
PREFIX_WORDS = 420
PEER_PORT = 8810
# `vllm serve` gets the precision and the memory of our engine. By default it compiles the model.
VLLM_VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
VLLM_DTYPE = "bfloat16" if is_bf16_fast() else "float32"
# What `vllm serve` runs. The command itself asks for a package of this name, which vllm-cpu is not.
VLLM_COMMAND = (
    "python",
    "-m",
    "vllm.entrypoints.openai.api_server",
    "--served-model-name=endpoint",
    f"--max-num-seqs={CONCURRENCY[-1]}",
    f"--dtype={VLLM_DTYPE}",
)
PEERS: dict[str, dict[str, Peer]] = {
    "transformers": {
        "transformers serve": Peer(("transformers", "serve")),
        "transformers serve --continuous-batching": Peer(("transformers", "serve", "--continuous-batching")),
    },
    "vllm": {
        "vllm serve": Peer((*VLLM_COMMAND, "--model"), VLLM_VARIABLES),
        "vllm serve --enforce-eager": Peer(
            (*VLLM_COMMAND, "--enforce-eager", "--block-size=32", "--model"),
            {**VLLM_VARIABLES, "TORCHDYNAMO_DISABLE": "1"},
        ),
    },
}


def make_config(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The demo's run, tuned on a small part of its rows: what the model answers does not matter here."""
    train = {"epochs": 1, "num_workers": 1, "cpus_per_worker": machine.CORES, "zero_stage": 0, "examples_per_step": 16}
    return bench_config(
        work,
        "endpoint",
        SOURCE,
        options.base,
        data={"test_fraction": 0.25, "train_fraction": 0.05, "max_tokens": 256, "pack_tokens": 384},
        train={**train, "use_gpu": options.gpu, "precision": "bf16" if options.gpu or is_bf16_fast() else "fp32"},
        evidence={"num_few_shot": 0, "max_rows": 40, "num_latency_rows": 1, "num_engines": 1},
        registry={"name": "endpoint", "gate": None},
        serving={
            "engine": options.engine,
            "num_cpus": 1 if options.gpu else machine.CORES,
            "num_gpus": 1 if options.gpu else 0,
            "max_batch_size": 16,
            "follow_seconds": None,
        },
    )


def measure_first_tokens(endpoint: ServerSide, inputs: Sequence[str]) -> dict[str, list[float]]:
    """Seconds to the first token after a long instruction, by whether it was computed before."""
    rng, words = random.Random(0), " ".join(inputs).split()

    def chat(instruction: str, text: str) -> list[Message]:
        return [{"role": "system", "content": instruction}, {"role": "user", "content": text}]

    def instruction() -> str:
        return " ".join(rng.choice(words) for _ in range(PREFIX_WORDS))

    fixed = instruction()
    endpoint.first_token_seconds(chat(fixed, "the first"))
    results: dict[str, list[float]] = {"cold": [], "kept": []}
    for text in inputs:
        results["cold"].append(endpoint.first_token_seconds(chat(instruction(), text)))
        results["kept"].append(endpoint.first_token_seconds(chat(fixed, text)))
    return results


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = machine.make_parser(__doc__)
    parser.add_argument("--requests", type=int, default=48, help="requests of a side in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", action="store_true", help="compute on a GPU, which engine, endpoint and peer share")
    parser.add_argument("--base", default=BASE, help="base model, as model.base")
    parser.add_argument("--no-peers", action="store_true", help="only engine and endpoint")
    parser.add_argument("--engine", choices=PEERS, default="transformers")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print its tables."""
    options = parse()
    work = (options.out / "work").absolute()
    shutil.rmtree(work / "endpoint", ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    facts, environment = machine.describe_machine(), dict(os.environ)
    config = register_model(work, options)
    folder = RunFolder.from_config(config)
    rows = [json.loads(line) for line in folder.test_rows_file.read_text().splitlines()][: options.requests]
    renderer = load_renderer(folder.model_dir)
    chats = [renderer.messages(row["instruction"], row["input"]) for row in rows]
    peers = {} if options.no_peers else PEERS[options.engine]
    engine = create_engine(folder.model_dir, renderer.contract, config.serving)
    with ExitStack() as stack:
        stack.callback(engine.close)
        endpoint = ServerSide(start_endpoint(config, lambda _: None), config.registry.name, chats)
        stack.callback(ray_session.shut_down_ray)
        sides = {"engine": EngineSide(engine, renderer, chats).run, "endpoint": endpoint.run}
        measured = measure(sides, CONCURRENCY, options.rounds)
        first = measure_first_tokens(endpoint, [row["input"] for row in rows[:12]])
        answers = endpoint.answers()
    against_peers = []
    for number, (name, peer) in enumerate(peers.items()):
        log_file = work / "logs" / f"endpoint-peer-{number}.log"
        with run_peer(peer, folder.model_dir, PEER_PORT + number, log_file, environment) as url:
            model = config.registry.name if options.engine == "vllm" else str(folder.model_dir)
            server = ServerSide(url, model, chats)
            machine.log(f"{name}: {count_equal(answers, server.answers())} of {len(chats)} answers are equal")
            against_peers += measure({name: server.run}, CONCURRENCY[-1:], options.rounds)
    publish(options, facts, measured, against_peers, first)
    shutil.rmtree(work / "endpoint")


def register_model(work: Path, options: argparse.Namespace) -> Config:
    """Tune and register a version; returns the config of its run."""
    config_file = work / "endpoint-config.json"
    config_file.write_text(json.dumps(make_config(work, options)))
    for stage in ("prepare", "tune", "evaluate", "register"):
        args = ["-m", f"jobs.{stage}", "--config", str(config_file)]
        machine.run_python(sys.executable, args, machine.environment(), work / "logs" / f"endpoint-{stage}.log")
    return Config.model_validate_json(config_file.read_text())


def measure(sides: Mapping[str, Callable[[int], float]], at_once: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Seconds of every side in every round, after a run that warms it up."""
    for run in sides.values():
        run(8)
    measured = []
    for number in at_once:
        for _ in range(rounds):
            for side, run in sides.items():
                measured.append({"at_once": number, "side": side, "seconds": run(number)})
                machine.log(f"{side}, {number} at once: {measured[-1]['seconds']:.1f} s")
    return measured


def count_equal(left: Sequence[str], right: Sequence[str]) -> int:
    return sum(one == other for one, other in zip(left, right, strict=True))


def select(measured: Sequence[dict[str, Any]], side: str, at_once: int) -> list[float]:
    """The seconds of a side at a concurrency."""
    return [one["seconds"] for one in measured if (one["side"], one["at_once"]) == (side, at_once)]


def publish(
    options: argparse.Namespace,
    facts: dict[str, Any],
    measured: Sequence[dict[str, Any]],
    against_peers: Sequence[dict[str, Any]],
    first: dict[str, list[float]],
) -> None:
    """Print and write the tables."""
    peers = () if options.no_peers else PEERS[options.engine]
    tables = [
        describe_overhead(measured, options.requests),
        describe_peers([*measured, *against_peers], peers, options.requests),
        describe_first_tokens(first),
    ]
    machine.publish("endpoint", options.out, facts, tables, [measured, against_peers, first])


def describe_overhead(measured: Sequence[dict[str, Any]], num_requests: int) -> str:
    """The endpoint against its engine."""
    lines = []
    for at_once in CONCURRENCY:
        engine, endpoint = (select(measured, side, at_once) for side in ("engine", "endpoint"))
        ratio = statistics.median(bare / served for bare, served in zip(engine, endpoint, strict=True))
        added = statistics.median(
            1000 * (served - bare) / num_requests for bare, served in zip(engine, endpoint, strict=True)
        )
        rates = [machine.spread([num_requests / one for one in seconds]) for seconds in (engine, endpoint)]
        lines.append([at_once, *rates, f"{100 * ratio:.1f} %", f"{added:.1f}"])
    header = ["requests at once", "engine, requests/s", "endpoint, requests/s", "share", "added per request, ms"]
    return machine.table(header, lines)


def describe_peers(measured: Sequence[dict[str, Any]], peers: Iterable[str], num_requests: int) -> str:
    """The endpoint against its peers."""
    at_once = CONCURRENCY[-1]
    endpoint = select(measured, "endpoint", at_once)
    lines = []
    for side in ("endpoint", *peers):
        seconds = select(measured, side, at_once)
        ratio = statistics.median(seconds) / statistics.median(endpoint)
        lines.append([side, machine.spread([num_requests / one for one in seconds]), f"{ratio:.2f}"])
    return machine.table([f"{at_once} at once", "requests/s", "the endpoint's requests/s over it"], lines)


def describe_first_tokens(first: dict[str, list[float]]) -> str:
    """The first token with and without a kept instruction."""
    medians = {name: statistics.median(seconds) for name, seconds in first.items()}
    lines = [
        ["not computed before", machine.spread(first["cold"])],
        ["kept", machine.spread(first["kept"])],
        ["ratio", f"{medians['kept'] / medians['cold']:.2f}"],
    ]
    return machine.table(["instruction of about 500 tokens", "seconds to the first token"], lines)


if __name__ == "__main__":
    machine.restart_with_environment("tests.bench.bench_endpoint")
    main()
