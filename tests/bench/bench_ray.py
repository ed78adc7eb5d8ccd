"""What does Ray cost? The same training loop under torchrun and under Ray Train: seconds a step, and to the first step.

    python -m tests.bench.bench_ray                           (about 15 minutes)

SmolLM2-135M on generated rows, two ranks on gloo, the same packs in the same order. Ray's side is `jobs.tune` as a user
runs it, with its feed, its checkpoints and its tracking; torchrun's is the step alone, packs already in memory.
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
from tests.bench.rows import generated, write_jsonl

TARGET_TAX = 0.05
TARGET_START = 8.0
WARM_UP = 2
RANKS = 2
SIDES = ("torchrun", "Ray Train")
# Ray gives its workers this niceness; torchrun's get the same.
NICE = 15
NUM_DRAWS = 2000


def prepare(work: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """Prepare the packs once; returns the configuration file and the run's folder."""
    source = work / "ray.jsonl"
    write_jsonl(generated(options.rows), source)
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
    """(seconds from the program's start to the end of its first step, seconds of each step behind the warm-up)."""
    env = machine.environment(max(1, machine.CORES // RANKS))
    for made in ("train", "model", "validation"):
        shutil.rmtree(folder / made, ignore_errors=True)
    for made in ("metrics.jsonl", "mlflow.json"):
        (folder / made).unlink(missing_ok=True)
    out = work / "torchrun.jsonl"
    out.unlink(missing_ok=True)
    began = time.time()
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
    # The file is appended to once a step: its last line was written when the last step ended.
    first = out.stat().st_mtime - sum(seconds[1:]) - began
    return first, seconds[WARM_UP:]


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median of the rounds' ratios."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(NUM_DRAWS))
    return medians[int(0.025 * NUM_DRAWS)], medians[int(0.975 * NUM_DRAWS)]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = machine.arguments(__doc__)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pack-tokens", type=int, default=256)
    parser.add_argument("--zero-stage", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Measure, print one table."""
    options = parse()
    work = options.out / "work"
    facts = machine.facts()
    path, folder = prepare(work, options)
    firsts: dict[str, list[float]] = {side: [] for side in SIDES}
    steps: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES:
            first, seconds = run_once(side, path, folder, work)
            firsts[side].append(first)
            steps[side].append(seconds)
            machine.say(
                f"round {number + 1}, {side}: {statistics.median(seconds):.3f} s a step, first by {first:.1f} s"
            )
    medians = {side: [statistics.median(each) for each in steps[side]] for side in SIDES}
    ratios = [ray / plain for plain, ray in zip(*(medians[side] for side in SIDES), strict=True)]
    low, high = interval(ratios)
    tax = statistics.median(ratios) - 1
    later = statistics.median([ray - plain for plain, ray in zip(*(firsts[side] for side in SIDES), strict=True)])
    lines = [[side, machine.spread(medians[side], 3), machine.spread(firsts[side], 1)] for side in SIDES]
    lines.append(
        [
            "Ray's cost",
            f"{tax:+.1%} (95 %: {low - 1:+.1%} to {high - 1:+.1%}); target ≤ {TARGET_TAX:.0%}: "
            f"{'yes' if tax <= TARGET_TAX else 'NO'}",
            f"{later:+.1f} s; target ≤ {TARGET_START:.0f}: {'yes' if later <= TARGET_START else 'NO'}",
        ]
    )
    header = ["two ranks", "seconds a step (median, range of rounds)", "seconds to the end of the first step"]
    measured = {side: {"first": firsts[side], "steps": steps[side]} for side in SIDES}
    machine.publish("ray", options.out, facts, [machine.table(header, lines)], measured)


if __name__ == "__main__":
    main()
