"""Measures whether training waits for its packs: seconds per step, streamed by Ray Data or already in memory.

    python -m tests.bench.bench_feed                          (about 10 minutes)

SmolLM2-135M on generated rows, one pack per step: the shortest possible step, and so the hardest to keep supplied.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

from tests.bench import machine
from tests.bench.examples import bench_config
from tests.bench.rows import generate_rows, write_jsonl

TARGET = 1.03
WARM_UP = 3
MODES = ("stream", "memory")


def run_once(mode: str, source: Path, work: Path, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Train once; returns (seconds of each step, seconds waited in it) after the warm-up."""
    values = bench_config(
        work,
        f"feed-{mode}",
        source,
        data={"test_fraction": 0.05, "pack_tokens": options.pack_tokens},
        train={
            "examples_per_step": 1,
            "num_workers": options.workers,
            "cpus_per_worker": max(1, machine.CORES // options.workers),
            "checkpoint_every": 10**6,
        },
    )
    folder, path = work / values["run"]["name"], work / f"feed-{mode}.json"
    shutil.rmtree(folder, ignore_errors=True)
    path.write_text(json.dumps(values))
    env = machine.environment(max(1, machine.CORES // options.workers))
    args = ["-m", "tests.bench.feed_sides", mode, str(path)]
    machine.run_python(sys.executable, args, env, work / "logs" / f"feed-{mode}.log")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][WARM_UP:]
    shutil.rmtree(folder)
    return [line["seconds"] for line in lines], [line.get("wait_seconds", float("nan")) for line in lines]


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = machine.make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pack-tokens", type=int, default=256)
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print its table."""
    options = parse()
    work = options.out / "work"
    facts, source = machine.describe_machine(), work / "feed.jsonl"
    write_jsonl(generate_rows(options.rows), source)
    medians: dict[str, list[float]] = {mode: [] for mode in MODES}
    wait_fractions: dict[str, list[float]] = {mode: [] for mode in MODES}
    measured = []
    for round_index in range(options.rounds):
        # Alternating order: a change in the machine's speed favors neither mode.
        for mode in MODES if round_index % 2 == 0 else reversed(MODES):
            seconds, wait_seconds = run_once(mode, source, work, options)
            medians[mode].append(statistics.median(seconds))
            wait_fractions[mode].append(sum(wait_seconds) / sum(seconds))
            measured.append({"mode": mode, "round": round_index, "seconds": seconds, "wait_seconds": wait_seconds})
            speed = f"{medians[mode][-1]:.3f} s per step over {len(seconds)} steps"
            machine.log(f"{mode}: {speed}, {wait_fractions[mode][-1]:.2%} waiting")
    ratios = [streamed / in_memory for streamed, in_memory in zip(*(medians[mode] for mode in MODES), strict=True)]
    ratio = statistics.median(ratios)
    lines = [
        [f"packs {name}", machine.spread(medians[mode], 3), f"{statistics.median(wait_fractions[mode]):.2%}", cell]
        for mode, name, cell in zip(
            MODES,
            ("streamed by Ray Data", "in memory"),
            (f"{machine.spread(ratios, 3)}; target ≤ {TARGET}: {'yes' if ratio <= TARGET else 'NO'}", ""),
            strict=True,
        )
    ]
    header = ["", "seconds per step (median, range of rounds)", "fraction waiting", "streamed / in memory"]
    machine.publish("feed", options.out, facts, [machine.table(header, lines)], measured)


if __name__ == "__main__":
    main()
