"""Does training wait for its packs? Seconds per step, streamed by Ray Data against already in memory.

    python -m tests.bench.bench_feed                          (about 10 minutes)

SmolLM2-135M on generated rows, one pack a step: the shortest step there is, so the hardest to feed.
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

from tests.bench import machine
from tests.bench.examples import bench_config
from tests.bench.rows import generated, write_jsonl

TARGET = 1.03
WARM_UP = 3
MODES = ("stream", "memory")


def run_once(mode: str, source: Path, work: Path, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """(seconds of each step, seconds waited in it), the warm-up left out."""
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
    """The command line."""
    parser = machine.arguments(__doc__)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pack-tokens", type=int, default=256)
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Measure, print one table."""
    options = parse()
    work = options.out / "work"
    facts, source = machine.facts(), work / "feed.jsonl"
    write_jsonl(generated(options.rows), source)
    medians: dict[str, list[float]] = {mode: [] for mode in MODES}
    shares: dict[str, list[float]] = {mode: [] for mode in MODES}
    measured = []
    for number in range(options.rounds):
        # Turn about: a machine that changes its pace favours neither.
        for mode in MODES if number % 2 == 0 else reversed(MODES):
            seconds, waited = run_once(mode, source, work, options)
            medians[mode].append(statistics.median(seconds))
            shares[mode].append(sum(waited) / sum(seconds))
            measured.append({"mode": mode, "round": number, "seconds": seconds, "wait_seconds": waited})
            machine.say(f"{mode}: {medians[mode][-1]:.3f} s a step over {len(seconds)}, {shares[mode][-1]:.2%} waiting")
    ratios = [streamed / held for streamed, held in zip(*(medians[mode] for mode in MODES), strict=True)]
    ratio = statistics.median(ratios)
    lines = [
        [f"packs {name}", machine.spread(medians[mode], 3), f"{statistics.median(shares[mode]):.2%}", cell]
        for mode, name, cell in zip(
            MODES,
            ("streamed by Ray Data", "in memory"),
            (f"{machine.spread(ratios, 3)}; target ≤ {TARGET}: {'yes' if ratio <= TARGET else 'NO'}", ""),
            strict=True,
        )
    ]
    header = ["", "seconds a step (median, range of rounds)", "of it waiting", "streamed / in memory"]
    machine.publish("feed", options.out, facts, [machine.table(header, lines)], measured)


if __name__ == "__main__":
    main()
