"""Measures the overhead of Ray: the same training step under torchrun and under Ray Train.

    python -m tests.bench.bench_ray                           (about 15 minutes)

Seconds per step, and to the first step. SmolLM2-135M on generated rows, two ranks with gloo, the same packs in the same
order. The Ray Train side is `jobs.tune` as a user runs it, with data streaming, checkpoints and tracking; the torchrun
side is the step alone, with packs already in memory.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import time
from pathlib import Path

import yaml

from tests.bench import machine
from tests.bench.examples import bench_config
from tests.bench.rows import generate_rows, write_jsonl

TARGET_OVERHEAD = 0.05
# Seconds.
TARGET_DELAY = 8.0
WARM_UP = 2
RANKS = 2
SIDES = ("torchrun", "Ray Train")
# Ray starts its workers with this niceness; torchrun's workers get the same.
NICE = 15
NUM_RESAMPLES = 2000


def prepare(work: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """Prepare the packs once; returns the config file and the run's folder."""
    source = work / "ray.jsonl"
    write_jsonl(generate_rows(options.rows), source)
    values = bench_config(
        work,
        "ray",
        source,
        data={"test_fraction": 0.05, "pack_tokens": options.pack_tokens},
        train={
            "examples_per_step": 1,
            "num_workers": RANKS,
            "zero_stage": options.zero_stage,
            "checkpoint_every": 10**6,
        },
    )
    path, folder = work / "ray.yaml", work / "ray"
    path.write_text(yaml.safe_dump(values))
    shutil.rmtree(folder, ignore_errors=True)
    args = ["-m", "jobs.prepare", "--config", str(path)]
    machine.run_python(sys.executable, args, machine.environment(), work / "logs" / "ray-prepare.log")
    return path, folder


def run_once(side: str, path: Path, folder: Path, work: Path) -> tuple[float, list[float]]:
    """Train once; returns (seconds until the end of the first step, seconds of each step after the warm-up)."""
    env = machine.environment(max(1, machine.CORES // RANKS))
    for name in ("train", "model", "validation"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.jsonl", "mlflow.json"):
        (folder / name).unlink(missing_ok=True)
    out = work / "torchrun.jsonl"
    out.unlink(missing_ok=True)
    start = time.time()
    if side == "torchrun":
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
        args = [*launcher, "-m", "tests.bench.ray_sides", str(path), str(out)]
        machine.run_python(sys.executable, args, env, work / "logs" / "torchrun.log", nice=NICE)
    else:
        out = folder / "metrics.jsonl"
        args = ["-m", "jobs.tune", "--config", str(path)]
        machine.run_python(sys.executable, args, env, work / "logs" / "ray-tune.log")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    seconds = [line["seconds"] for line in lines]
    # A line is appended after each step, so the last step ended when the file was last written.
    first = out.stat().st_mtime - sum(seconds[1:]) - start
    return first, seconds[WARM_UP:]


def bootstrap_interval(ratios: list[float]) -> tuple[float, float]:
    """Compute the 95 % bootstrap interval of the median ratio."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(NUM_RESAMPLES))
    return medians[int(0.025 * NUM_RESAMPLES)], medians[int(0.975 * NUM_RESAMPLES)]


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = machine.make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pack-tokens", type=int, default=256)
    parser.add_argument("--zero-stage", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print its table."""
    options = parse()
    work = options.out / "work"
    facts = machine.describe_machine()
    path, folder = prepare(work, options)
    firsts: dict[str, list[float]] = {side: [] for side in SIDES}
    steps: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for round_index in range(options.rounds):
        for side in SIDES:
            first, seconds = run_once(side, path, folder, work)
            firsts[side].append(first)
            steps[side].append(seconds)
            median = statistics.median(seconds)
            machine.log(f"round {round_index + 1}, {side}: {median:.3f} s per step, first step after {first:.1f} s")
    medians = {side: [statistics.median(seconds) for seconds in steps[side]] for side in SIDES}
    ratios = [ray / torchrun for torchrun, ray in zip(*(medians[side] for side in SIDES), strict=True)]
    low, high = bootstrap_interval(ratios)
    overhead = statistics.median(ratios) - 1
    first_pairs = zip(*(firsts[side] for side in SIDES), strict=True)
    delay = statistics.median([ray - torchrun for torchrun, ray in first_pairs])
    lines = [[side, machine.spread(medians[side], 3), machine.spread(firsts[side], 1)] for side in SIDES]
    lines.append(
        [
            "Ray's overhead",
            f"{overhead:+.1%} (95 %: {low - 1:+.1%} to {high - 1:+.1%}); target ≤ {TARGET_OVERHEAD:.0%}: "
            f"{'yes' if overhead <= TARGET_OVERHEAD else 'NO'}",
            f"{delay:+.1f} s; target ≤ {TARGET_DELAY:.0f}: {'yes' if delay <= TARGET_DELAY else 'NO'}",
        ]
    )
    header = ["two ranks", "seconds per step (median, range of rounds)", "seconds to the end of the first step"]
    measured = {side: {"first": firsts[side], "steps": steps[side]} for side in SIDES}
    machine.publish("ray", options.out, facts, [machine.table(header, lines)], measured)


if __name__ == "__main__":
    main()
