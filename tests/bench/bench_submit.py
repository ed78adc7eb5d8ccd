"""Measures what submitting costs: seconds to the first step of a run, by `instruct-ray submit` and on the node itself.

    python -m tests.bench.bench_submit                           (about 10 minutes)

Both sides join the same running cluster of one node, which requires a token; `submit` reaches it over HTTP, checks it
by a job of its own, and submits the config. SmolLM2-135M with LoRA on generated rows, packs prepared before. The
seconds are those from the start of the command until the first step is logged.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path

import yaml

from tests.bench import machine
from tests.bench.examples import bench_config
from tests.bench.rows import generate_rows, write_jsonl
from tests.token_cluster import TokenCluster, token_cluster, user_environment

SIDES = ("on the node", "submitted")
# Steps of the run, on both sides.
STEPS = 4


def prepare(work: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """Prepare the packs once; returns the config file and the run's folder."""
    source = work / "submit.jsonl"
    write_jsonl(generate_rows(options.rows), source)
    values = bench_config(
        work,
        "submit",
        source,
        model={"lora": {}},
        data={"test_fraction": 0.05, "pack_tokens": 256},
        train={"examples_per_step": max(1, options.rows // STEPS), "zero_stage": 0},
    )
    path, folder = work / "submit.yaml", work / "submit"
    path.write_text(yaml.safe_dump(values))
    shutil.rmtree(folder, ignore_errors=True)
    args = ["-m", "jobs.prepare", "--config", str(path)]
    machine.run_python(sys.executable, args, machine.environment(), work / "logs" / "submit-prepare.log")
    return path, folder


def run_once(side: str, cluster: TokenCluster, path: Path, folder: Path, work: Path) -> float:
    """Train once; returns the seconds until the first step is logged."""
    for name in ("train", "model", "validation"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.jsonl", "mlflow.json"):
        (folder / name).unlink(missing_ok=True)
    environment = user_environment()
    if side == "submitted":
        args = ["-m", "instruct_ray", "submit", "tune", "--config", str(path), "--address", cluster.dashboard]
    else:
        args = ["-m", "instruct_ray", "tune", "--config", str(path)]
        environment["RAY_ADDRESS"] = cluster.address
    start = time.time()
    machine.run_python(sys.executable, args, environment, work / "logs" / f"submit-{side.replace(' ', '-')}.log")
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    return float(first["time"] - start)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = machine.make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print its table."""
    options = parse()
    work = options.out / "work"
    facts = machine.describe_machine()
    path, folder = prepare(work, options)
    firsts: dict[str, list[float]] = {side: [] for side in SIDES}
    with token_cluster() as cluster:
        for round_index in range(options.rounds):
            for side in SIDES:
                firsts[side].append(run_once(side, cluster, path, folder, work))
                machine.log(f"round {round_index + 1}, {side}: first step after {firsts[side][-1]:.1f} s")
    ratios = [submitted / node for node, submitted in zip(*(firsts[side] for side in SIDES), strict=True)]
    lines = [[side, machine.spread(firsts[side], 1)] for side in SIDES]
    lines.append(["submitted / on the node", f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"])
    header = ["", "seconds to the first step (median, range of rounds)"]
    machine.publish("submit", options.out, facts, [machine.table(header, lines)], {"first": firsts})


if __name__ == "__main__":
    main()
