"""Measures training throughput in row tokens per second, against peers at their defaults and at their best settings.

    python -m tests.bench.bench_train                     (both data sets, three rounds)
    python -m tests.bench.bench_train --try               (candidates for the peers' best settings, once each)
    python -m tests.bench.bench_train --gpu --pack-tokens 4096 --peers trl

SmolLM2-135M, full fine-tuning in bf16, all cores, the same rows, the same number of optimizer steps, including the
optimizer. Our side is `jobs.prepare`, then `jobs.tune` with Ray Train and DeepSpeed. The peers are TRL, and the Trainer
of transformers with DeepSpeed. First, all sides must compute the same fp32 loss on the same rows.
"""

import argparse
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from instruct_ray.training.worker.gpu_meter import find_peak_flops
from tests.bench import machine
from tests.bench.equal_loss import check_equal_loss
from tests.bench.examples import BASE
from tests.bench.flops import ModelSize, compute_useful_flops
from tests.bench.peers import GPU_TRL, PEERS, TRL, ensure_peer_python
from tests.bench.rows import MissingDataError, load_real
from tests.bench.train_sides import Task, Timing, make_task, run_ours, run_peer

# Chosen so that peers take the same number of steps with equal batches.
NUM_ROWS = {"clinc": 320, "alpaca": 64}
EXAMPLES_PER_STEP = {"clinc": 64, "alpaca": 16}
# On a GPU, which is faster and needs larger batches.
GPU_NUM_ROWS = {"clinc": 12_800, "alpaca": 960}
GPU_EXAMPLES_PER_STEP = {"clinc": 256, "alpaca": 32}
# Speed-up over TRL at its best settings, and at its defaults.
TARGETS = {"clinc": (3.0, 4.5), "alpaca": (1.15, 2.0)}


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = machine.make_parser(__doc__)
    parser.add_argument("--data", nargs="+", choices=NUM_ROWS, default=list(NUM_ROWS))
    parser.add_argument("--rows", type=int, help="rows of each data set; fewer while developing")
    parser.add_argument("--rounds", type=int, default=3, help="each runs our side once and every peer twice")
    parser.add_argument("--pack-tokens", type=int, default=1024)
    parser.add_argument("--examples-per-step", type=int)
    parser.add_argument("--gpu", action="store_true", help="train on a GPU; more rows and larger batches")
    parser.add_argument("--base", default=BASE, help="base model, as model.base")
    parser.add_argument("--workers", type=int, default=1, help="number of our Ray Train workers; they share the cores")
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--env", type=Path, default=machine.CACHE / "peers", help="virtual environment of the peers")
    trainers = [peer.trainer for peer in PEERS]
    parser.add_argument("--peers", nargs="*", choices=trainers, default=trainers, help="none: only our side")
    parser.add_argument(
        "--try", action="store_true", dest="try_candidates", help="only measure the candidate settings of the peers"
    )
    options = parser.parse_args()
    options.peers = [peer for peer in ((GPU_TRL,) if options.gpu else PEERS) if peer.trainer in options.peers]
    examples_per_step = GPU_EXAMPLES_PER_STEP if options.gpu else EXAMPLES_PER_STEP
    options.examples_per_step = {name: options.examples_per_step or examples_per_step[name] for name in NUM_ROWS}
    return options


def run_rounds(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all sides in each round, so that disturbances of the machine affect all of them."""
    rounds = []
    for round_index in range(options.rounds):
        peak = gpu_peak() if options.gpu else machine.gemm_peak(machine.CORES)
        sides = {"ours": run_ours(task, f"round{round_index}", options)}
        for peer in options.peers:
            for index, (side, settings) in enumerate(peer.sides(task.name).items()):
                sides[side] = run_peer(
                    task, f"round{round_index}-{index}", ensure_peer_python(options.env), peer, settings
                )
        rates = ", ".join(f"{side} {timing.tokens_per_second:,.0f}" for side, timing in sides.items())
        machine.log(f"{task.name} round {round_index + 1}: {rates} tokens/s; matrix products {peak:,.0f} GFLOP/s")
        rounds.append({"peak_gflops": peak, "sides": sides})
    return rounds


def gpu_peak() -> float:
    """GFLOP/s of dense bf16 matrix products on this GPU, by its maker; NaN if it is unknown."""
    peak = find_peak_flops(torch.cuda.get_device_name())
    return float("nan") if peak is None else peak / 1e9


def summarize(task: Task, rounds: list[dict[str, Any]]) -> list[list[object]]:
    """Build one table row per side."""
    flops_per_token = compute_useful_flops(ModelSize.from_folder(task.base), task.packs) / sum(
        len(p["input_ids"]) for p in task.packs
    )
    lines: list[list[object]] = []
    for side in rounds[0]["sides"]:
        timings: list[Timing] = [round_["sides"][side] for round_ in rounds]
        ratios = [
            round_["sides"]["ours"].tokens_per_second / round_["sides"][side].tokens_per_second for round_ in rounds
        ]
        peak_fractions = [
            timing.computed_per_second * flops_per_token / 1e9 / round_["peak_gflops"]
            for timing, round_ in zip(timings, rounds, strict=True)
        ]
        lines.append(
            [
                task.name,
                side,
                machine.spread([timing.tokens_per_second for timing in timings], 0),
                "" if side == "ours" else machine.spread(ratios) + _verdict(task.name, side, ratios),
                f"{statistics.median(peak_fractions):.0%}" if side == "ours" else "",
            ]
        )
    return lines


def _verdict(name: str, side: str, ratios: list[float]) -> str:
    """Compare with the target, which exists for TRL only."""
    if not side.startswith(TRL.name):
        return ""
    target = TARGETS[name][0 if side.endswith("best settings") else 1]
    return f"; target ≥ {target}: {'yes' if statistics.median(ratios) >= target else 'NO'}"


def try_candidates(task: Task, options: argparse.Namespace) -> list[list[object]]:
    """Measure every candidate of the peers once; a failure is shown instead of a rate."""
    lines: list[list[object]] = []
    for peer in options.peers:
        for index, (name, settings) in enumerate(peer.candidates.items()):
            try:
                timing = run_peer(task, f"try{index}", ensure_peer_python(options.env), peer, settings)
                rate = f"{timing.tokens_per_second:,.0f}"
            except (RuntimeError, AssertionError) as error:
                rate = str(error).splitlines()[-1]
            machine.log(f"{task.name}, {peer.name}, {name}: {rate}")
            lines.append([task.name, peer.name, name, rate])
    return lines


def main() -> None:
    """Run the benchmark and print its table."""
    options = parse()
    work = options.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    facts, lines, measured = machine.describe_machine(), [], []
    for name in options.data:
        try:
            rows = load_real(name)[: options.rows or (GPU_NUM_ROWS if options.gpu else NUM_ROWS)[name]]
        except MissingDataError as error:
            machine.log(f"skipped {name}: {error}")
            continue
        task = make_task(name, rows, work, options)
        machine.log(f"{name}: {len(task.examples)} rows, {task.row_tokens:,} tokens, {task.num_steps} steps")
        if options.try_candidates:
            lines += try_candidates(task, options)
            continue
        equal = [
            check_equal_loss(task, ensure_peer_python(options.env), peer, options.pack_tokens) for peer in options.peers
        ]
        machine.log(f"{name}: loss in fp32 {equal}")
        rounds = run_rounds(task, options)
        lines += summarize(task, rounds)
        sides = [{side: asdict(timing) for side, timing in round_["sides"].items()} for round_ in rounds]
        peaks = [round_["peak_gflops"] for round_ in rounds]
        measured.append({"data": name, "equal_loss": equal, "peak_gflops": peaks, "rounds": sides})
    if options.try_candidates:
        machine.publish(
            "train_try", options.out, facts, [machine.table(["data", "peer", "settings", "tokens/s"], lines)], lines
        )
        return
    header = ["data", "side", "row tokens/s (median, range)", "our speed-up", "fraction of the bf16 matrix peak"]
    machine.publish("train", options.out, facts, [machine.table(header, lines)], measured)


if __name__ == "__main__":
    main()
