"""Measures the cost of checkpoints: the same training with and without them.

    python -m tests.bench.bench_checkpoint                    (about 15 minutes)

The result is the fraction of training time at one checkpoint in ten minutes. SmolLM2-135M, all weights in bf16 with
fp32 master weights and two moments: 1.6 GB per checkpoint. The whole program is timed, which includes writing shards
between steps, uploading and hashing files in the background, and waiting for the last checkpoint at the end.
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
from tests.bench.rows import generate_rows, write_jsonl

TARGET = 0.03
INTERVAL_SECONDS = 600
VARIANTS = ("only the last", "every few steps")


def run_once(variant: str, source: Path, work: Path, options: argparse.Namespace) -> tuple[float, int, float]:
    """Train once; returns (seconds of the whole training, number of steps, GB of the last checkpoint)."""
    every = options.every if variant == VARIANTS[1] else 10**6
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
        start = time.perf_counter()
        args = ["-m", f"jobs.{job}", "--config", str(path)]
        machine.run_python(sys.executable, args, machine.environment(), work / "logs" / f"checkpoint-{job}.log")
    seconds = time.perf_counter() - start
    num_steps = len((folder / "metrics.jsonl").read_text().splitlines())
    newest = max((folder / "train").glob("checkpoint-*"))
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file()) / 1e9
    shutil.rmtree(folder)
    return seconds, num_steps, size


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = machine.make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--pack-tokens", type=int, default=256)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print its table."""
    options = parse()
    work = options.out / "work"
    facts, source = machine.describe_machine(), work / "checkpoint.jsonl"
    write_jsonl(generate_rows(options.rows), source)
    totals: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    num_steps, size = 0, 0.0
    for round_index in range(options.rounds):
        for variant in VARIANTS:
            seconds, num_steps, size = run_once(variant, source, work, options)
            totals[variant].append(seconds)
            machine.log(f"round {round_index + 1}, {variant}: {seconds:.1f} s for {num_steps} steps")
    num_extra = -(-num_steps // options.every) - 1
    pairs = zip(*(totals[variant] for variant in VARIANTS), strict=True)
    costs = [(with_checkpoints - without) / num_extra for without, with_checkpoints in pairs]
    cost = statistics.median(costs)
    fraction = cost / INTERVAL_SECONDS
    verdict = f"{fraction:.2%}; target ≤ {TARGET:.0%}: {'yes' if fraction <= TARGET else 'NO'}"
    seconds_cells = [machine.spread(totals[variant], 1) for variant in VARIANTS]
    cells = [f"{size:.2f}", num_extra, *seconds_cells, machine.spread(costs), verdict]
    header = [
        "GB per checkpoint",
        "extra checkpoints",
        "seconds without",
        "seconds with",
        "seconds per checkpoint (median, range of rounds)",
        "fraction of training time at one in 10 minutes",
    ]
    measured = {"seconds": totals, "num_steps": num_steps, "num_extra_checkpoints": num_extra, "gb": size}
    machine.publish("checkpoint", options.out, facts, [machine.table(header, [cells])], measured)


if __name__ == "__main__":
    main()
