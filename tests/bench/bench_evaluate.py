"""Measures what `evaluate` takes, against its engine alone with the same prompts.

python -m tests.bench.bench_evaluate
python -m tests.bench.bench_evaluate --rows 20 --rounds 1     (while developing)
"""

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from instruct_ray.base_model.cpu_precision import is_bf16_fast
from tests.bench import machine
from tests.bench.examples import bench_config

SOURCE = machine.ROOT / "jobs" / "data" / "incidents.jsonl"
SIDES = {"evaluate": "`instruct-ray evaluate`", "engine": "the engine alone"}


def make_config(work: Path, num_rows: int) -> dict[str, Any]:
    """The demo's run, tuned on a small part of its rows: what a model answers does not matter here."""
    train = {"epochs": 1, "num_workers": 1, "cpus_per_worker": machine.CORES, "zero_stage": 0, "examples_per_step": 16}
    return bench_config(
        work,
        "evaluate",
        SOURCE,
        data={"test_fraction": 0.25, "train_fraction": 0.05, "max_tokens": 256, "pack_tokens": 384},
        train={**train, "precision": "bf16" if is_bf16_fast() else "fp32"},
        evidence={"num_few_shot": [1, 3, 5], "max_rows": num_rows, "num_engines": 1, "num_latency_rows": 8},
        serving={"num_cpus": machine.CORES, "max_batch_size": 32},
    )


def measure(side: str, config_file: Path, work: Path) -> dict[str, Any]:
    """Run one side once; the evidence of an earlier round is removed."""
    evidence_dir, result_file = work / "evaluate" / "evidence", work / "evaluate-result.json"
    shutil.rmtree(evidence_dir, ignore_errors=True)
    evidence_dir.mkdir()
    args = ["-m", "tests.bench.evaluate_sides", side, str(config_file), str(result_file)]
    machine.run_python(sys.executable, args, machine.environment(), work / "logs" / f"evaluate-{side}.log")
    result: dict[str, Any] = json.loads(result_file.read_text()) | {"side": side}
    machine.log(f"{SIDES[side]}: {result['seconds']:.1f} s, {result['num_tokens']:,} tokens of prompts and answers")
    return result


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = machine.make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=246, help="held-out rows that are answered")
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print its table."""
    options = parse()
    work = (options.out / "work").absolute()
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "evaluate", ignore_errors=True)
    config_file = work / "evaluate-config.json"
    config_file.write_text(json.dumps(make_config(work, options.rows)))
    facts = machine.describe_machine()
    for stage in ("prepare", "tune"):
        args = ["-m", f"jobs.{stage}", "--config", str(config_file)]
        machine.run_python(sys.executable, args, machine.environment(), work / "logs" / f"evaluate-{stage}.log")
    results = [measure(side, config_file, work) for _ in range(options.rounds) for side in SIDES]
    seconds = {side: [one["seconds"] for one in results if one["side"] == side] for side in SIDES}
    bare = statistics.median(seconds["engine"])
    lines = [
        [SIDES[side], machine.spread(taken, 1), f"{statistics.median(taken) / bare:.2f}"]
        for side, taken in seconds.items()
    ]
    shutil.rmtree(work / "evaluate")
    table = machine.table(["side", "seconds", "ratio"], lines)
    machine.publish("evaluate", options.out, facts, [table, f"{options.rows} rows, five arms."], results)


if __name__ == "__main__":
    main()
