"""What do checkpoints cost? The same training with and without them, as a share of training time at one in ten minutes.

    python -m tests.bench.bench_checkpoint                    (about 15 minutes)

SmolLM2-135M, all weights, bf16 over fp32 master weights and two moments: 1.6 GB a checkpoint. The whole program is
timed, so that all is in it: shards written between two steps, files that travel and are hashed beside the steps that
follow, and waiting for the last one at the end.
"""

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path

import yaml

from tests.bench import machine
from tests.bench.examples import bench_config
from tests.bench.rows import generated, write_jsonl

TARGET = 0.03
INTERVAL_SECONDS = 600
SIDES = ("none but the last", "every few steps")


def run_once(side: str, source: Path, work: Path, options: argparse.Namespace) -> tuple[float, int, float]:
    """(seconds of the whole training, steps, GB of its last checkpoint)."""
    every = options.every if side == SIDES[1] else 10**6
    values = bench_config(
        work,
        "checkpoint",
        source,
        data={"test_fraction": 0.05, "pack_tokens": options.pack_tokens},
        train={"examples_per_step": 1, "cpus_per_worker": machine.CORES, "checkpoint_every": every},
    )
    path, folder = work / "checkpoint.yaml", work / "checkpoint"
    path.write_text(yaml.safe_dump(values))
    shutil.rmtree(folder, ignore_errors=True)
    for job in ("prepare", "tune"):
        began = time.perf_counter()
        args = ["-m", f"jobs.{job}", "--config", str(path)]
        machine.run_python(sys.executable, args, machine.environment(), work / "logs" / f"checkpoint-{job}.log")
    seconds = time.perf_counter() - began
    num_steps = len((folder / "metrics.jsonl").read_text().splitlines())
    newest = max((folder / "train").glob("checkpoint-*"))
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file()) / 1e9
    shutil.rmtree(folder)
    return seconds, num_steps, size


def parse() -> argparse.Namespace:
    """The command line."""
    parser = machine.arguments(__doc__)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--pack-tokens", type=int, default=256)
    return parser.parse_args()


def main() -> None:
    """Measure, print one table."""
    options = parse()
    work = options.out / "work"
    facts, source = machine.facts(), work / "checkpoint.jsonl"
    write_jsonl(generated(options.rows), source)
    totals: dict[str, list[float]] = {side: [] for side in SIDES}
    num_steps, size = 0, 0.0
    for number in range(options.rounds):
        for side in SIDES:
            seconds, num_steps, size = run_once(side, source, work, options)
            totals[side].append(seconds)
            machine.say(f"round {number + 1}, {side}: {seconds:.1f} s for {num_steps} steps")
    num_more = -(-num_steps // options.every) - 1
    costs = [(some - none) / num_more for none, some in zip(*(totals[side] for side in SIDES), strict=True)]
    cost = statistics.median(costs)
    share = cost / INTERVAL_SECONDS
    verdict = f"{share:.2%}; target ≤ {TARGET:.0%}: {'yes' if share <= TARGET else 'NO'}"
    both = [machine.spread(totals[side], 1) for side in SIDES]
    cells = [f"{size:.2f}", num_more, *both, machine.spread(costs), verdict]
    header = [
        "GB each",
        "checkpoints more",
        "seconds without",
        "seconds with",
        "seconds each (median, range of rounds)",
        "share of training time at one in 10 minutes",
    ]
    measured = {"seconds": totals, "num_steps": num_steps, "num_checkpoints_more": num_more, "gb": size}
    machine.publish("checkpoint", options.out, facts, [machine.table(header, [cells])], measured)


if __name__ == "__main__":
    main()
