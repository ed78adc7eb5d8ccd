"""Training throughput in row tokens a second: ours, and peers at their defaults and at the best settings found.

    python -m tests.bench.bench_train                     (both data sets, three rounds)
    python -m tests.bench.bench_train --try               (candidates for the peers' best settings, once each)

SmolLM2-135M, full tuning in bf16, both cores, the same rows, the same number of optimizer steps, optimizer included.
Ours is the real thing: `jobs.prepare`, then `jobs.tune` with Ray Train and DeepSpeed. Peers are TRL, and transformers'
Trainer with DeepSpeed. Before anything is timed, all must give the same loss on the same rows in fp32.
"""

import argparse
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench import machine
from tests.bench.equal_loss import check_equal_loss
from tests.bench.flops import ModelSize, useful_flops
from tests.bench.peers import PEERS, TRL, python_of
from tests.bench.rows import NoDataError, real
from tests.bench.train_sides import Task, Timed, make_task, run_ours, run_peer

# So many that peers come out at as many steps in equal batches.
NUM_ROWS = {"clinc": 320, "alpaca": 64}
EXAMPLES_PER_STEP = {"clinc": 64, "alpaca": 16}
# Ours over TRL at its best, over its defaults.
TARGETS = {"clinc": (3.0, 4.5), "alpaca": (1.15, 2.0)}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = machine.arguments(__doc__)
    parser.add_argument("--data", nargs="+", choices=NUM_ROWS, default=list(NUM_ROWS))
    parser.add_argument("--rows", type=int, help="rows of each data set; fewer while developing")
    parser.add_argument("--rounds", type=int, default=3, help="each runs ours, then every peer twice")
    parser.add_argument("--pack-tokens", type=int, default=1024)
    parser.add_argument("--examples-per-step", type=int)
    parser.add_argument("--workers", type=int, default=1, help="our Ray Train workers; they share the cores")
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--env", type=Path, default=machine.CACHE / "peers", help="the peers' environment")
    trainers = [peer.trainer for peer in PEERS]
    parser.add_argument("--peers", nargs="*", choices=trainers, default=trainers, help="none: only ours")
    parser.add_argument("--try", action="store_true", dest="try_candidates", help="only the peers' candidates")
    options = parser.parse_args()
    options.peers = [peer for peer in PEERS if peer.trainer in options.peers]
    options.examples_per_step = {name: options.examples_per_step or EXAMPLES_PER_STEP[name] for name in NUM_ROWS}
    return options


def run_rounds(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Ours, each peer at its defaults and at its best, and again: what disturbs the machine disturbs all."""
    rounds = []
    for number in range(options.rounds):
        peak = machine.gemm_peak(machine.CORES)
        sides = {"ours": run_ours(task, f"round{number}", options)}
        for peer in options.peers:
            for index, (side, settings) in enumerate(peer.sides(task.name).items()):
                sides[side] = run_peer(task, f"round{number}-{index}", python_of(options.env), peer, settings)
        rates = ", ".join(f"{side} {timed.tokens_per_second:,.0f}" for side, timed in sides.items())
        machine.say(f"{task.name} round {number + 1}: {rates} tokens/s; matrix products {peak:,.0f} GFLOP/s")
        rounds.append({"peak_gflops": peak, "sides": sides})
    return rounds


def summary(task: Task, rounds: list[dict[str, Any]]) -> list[list[object]]:
    """One line of the table for each side."""
    flops_per_token = useful_flops(ModelSize.of(task.base), task.packs) / sum(len(p["input_ids"]) for p in task.packs)
    lines: list[list[object]] = []
    for side in rounds[0]["sides"]:
        timed: list[Timed] = [each["sides"][side] for each in rounds]
        ratios = [each["sides"]["ours"].tokens_per_second / each["sides"][side].tokens_per_second for each in rounds]
        shares = [
            one.computed_per_second * flops_per_token / 1e9 / each["peak_gflops"]
            for one, each in zip(timed, rounds, strict=True)
        ]
        lines.append(
            [
                task.name,
                side,
                machine.spread([one.tokens_per_second for one in timed], 0),
                "" if side == "ours" else machine.spread(ratios) + _verdict(task.name, side, ratios),
                f"{statistics.median(shares):.0%}" if side == "ours" else "",
            ]
        )
    return lines


def _verdict(name: str, side: str, ratios: list[float]) -> str:
    """Targets are set against TRL."""
    if not side.startswith(TRL.name):
        return ""
    target = TARGETS[name][0 if side.endswith("best settings") else 1]
    return f"; target ≥ {target}: {'yes' if statistics.median(ratios) >= target else 'NO'}"


def try_candidates(task: Task, options: argparse.Namespace) -> list[list[object]]:
    """The peers at every candidate, once; what fails says why."""
    lines: list[list[object]] = []
    for peer in options.peers:
        for number, (name, settings) in enumerate(peer.candidates.items()):
            try:
                timed = run_peer(task, f"try{number}", python_of(options.env), peer, settings)
                rate = f"{timed.tokens_per_second:,.0f}"
            except (RuntimeError, AssertionError) as error:
                rate = str(error).splitlines()[-1]
            machine.say(f"{task.name}, {peer.name}, {name}: {rate}")
            lines.append([task.name, peer.name, name, rate])
    return lines


def main() -> None:
    """Measure, print one table."""
    options = parse()
    work = options.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    facts, lines, measured = machine.facts(), [], []
    for name in options.data:
        try:
            rows = real(name)[: options.rows or NUM_ROWS[name]]
        except NoDataError as reason:
            machine.say(f"skipped {name}: {reason}")
            continue
        task = make_task(name, rows, work, options)
        machine.say(f"{name}: {len(task.examples)} rows, {task.row_tokens:,} tokens, {task.num_steps} steps")
        if options.try_candidates:
            lines += try_candidates(task, options)
            continue
        equal = [check_equal_loss(task, python_of(options.env), peer, options.pack_tokens) for peer in options.peers]
        machine.say(f"{name}: loss in fp32 {equal}")
        rounds = run_rounds(task, options)
        lines += summary(task, rounds)
        sides = [{side: asdict(timed) for side, timed in each["sides"].items()} for each in rounds]
        peaks = [each["peak_gflops"] for each in rounds]
        measured.append({"data": name, "equal_loss": equal, "peak_gflops": peaks, "rounds": sides})
    if options.try_candidates:
        machine.publish(
            "train_try", options.out, facts, [machine.table(["data", "peer", "settings", "tokens/s"], lines)], lines
        )
        return
    header = ["data", "side", "row tokens/s (median, range)", "ours is faster by", "share of the bf16 matrix peak"]
    machine.publish("train", options.out, facts, [machine.table(header, lines)], measured)


if __name__ == "__main__":
    main()
