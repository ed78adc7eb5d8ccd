"""Rows a second from JSON lines to packs, and what it holds in memory, against `datasets.map` that only tokenises.

python -m tests.bench.bench_prepare                        (1,000,000 rows, then twice as many)
python -m tests.bench.bench_prepare --rows 20000 --rounds 1     (while developing)
"""

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_ray.config.data import DataConfig
from instruct_ray.config.schema import Config
from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.run.folder import RunFolder
from tests.bench import machine
from tests.bench.examples import bench_config, examples_of, renderer_of, resolve_base
from tests.bench.memory import run_watched
from tests.bench.rows import generated, write_jsonl

# Rows whose tokens are compared before anything is timed.
NUM_CHECKED = 200
PACK_TOKENS = 2048


@dataclass(frozen=True)
class Measured:
    """One side in one round."""

    side: str
    rows: int
    seconds: float
    peak_bytes: int
    details: dict[str, Any]


def sides(work: Path, num_rows: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of a side -> (which program, its job)."""
    source = work / f"generated-{num_rows}.jsonl"
    jobs: dict[str, tuple[str, dict[str, Any]]] = {}
    options: dict[str, dict[str, Any]] = {"prepare": {}}
    if "near_duplicates" in DataConfig.model_fields:
        default = DataConfig.model_fields["near_duplicates"].default
        options = {
            "prepare, without the search for near duplicates": {"near_duplicates": None},
            "prepare": {"near_duplicates": default},
        }
    for number, (side, data) in enumerate(options.items()):
        data = {"pack_tokens": PACK_TOKENS, **data}
        jobs[side] = ("ours", {"config": bench_config(work, f"prepare{number}", source, data=data)})
    jobs["datasets.map, rendering and tokenising only"] = (
        "datasets",
        {
            "source": str(source),
            "cache": str(work / "datasets"),
            "base": str(resolve_base(work).folder),
            "num_proc": machine.CORES,
            "num_checked": NUM_CHECKED,
        },
    )
    return jobs


def measure(side: str, program: str, job: dict[str, Any], num_rows: int, work: Path) -> Measured:
    """Run one side once, from nothing."""
    given, answer = work / "prepare-job.json", work / "prepare-answer.json"
    given.write_text(json.dumps(job))
    if program == "ours":
        shutil.rmtree(work / job["config"]["run"]["name"], ignore_errors=True)
    command = [sys.executable, "-m", "tests.bench.prepare_sides", program, str(given), str(answer)]
    # Each of the processes of `datasets` has one core.
    watch = run_watched(
        command,
        {"HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"},
        work / "logs" / f"prepare-{program}.log",
    )
    details = json.loads(answer.read_text())
    growth = watch.growth(details["idle_at"], details["done_at"])
    one = Measured(side, num_rows, details["seconds"], growth, details)
    machine.say(f"{side}: {num_rows / one.seconds:,.0f} rows/s, {growth / 2**20:,.0f} MiB over idle")
    return one


def check_tokens(one: Measured, work: Path) -> None:
    """Both sides make the same tokens.

    Raises:
        AssertionError: they do not.
    """
    examples = examples_of(renderer_of(resolve_base(work)), list(generated(NUM_CHECKED)))
    for example, row in zip(examples, one.details.pop("first"), strict=True):
        if [list(example.prompt_ids), list(example.completion_ids)] != [row["prompt_ids"], row["completion_ids"]]:
            raise AssertionError(f"datasets.map makes other tokens of row {example.row_id} than the renderer")


def summary(measured: list[Measured], num_rows: int) -> list[list[object]]:
    """One line of the table for each side and size."""
    names = list(dict.fromkeys(one.side for one in measured))
    lines: list[list[object]] = []
    for size in (num_rows, 2 * num_rows):
        reference = [one.seconds for one in measured if one.side == names[-1] and one.rows == size]
        for name in names:
            runs = [one for one in measured if one.side == name and one.rows == size]
            if not runs or not reference:
                continue
            ratio = statistics.median(reference) / statistics.median(one.seconds for one in runs)
            rates = machine.spread([size / one.seconds for one in runs], 0)
            peak = max(one.peak_bytes for one in runs) / 2**20
            lines.append([f"{size:,}", name, rates, "" if name == names[-1] else f"{ratio:.2f}", f"{peak:,.0f}"])
    return lines


def parse() -> argparse.Namespace:
    """The command line."""
    parser = machine.arguments(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="also measured once with twice as many")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--once", action="store_true", help="leave out twice as many rows")
    return parser.parse_args()


def main() -> None:
    """Measure, print one table."""
    options = parse()
    work = options.out / "work"
    facts, measured = machine.facts(), []
    for size in (options.rows,) if options.once else (options.rows, 2 * options.rows):
        write_jsonl(generated(size), work / f"generated-{size}.jsonl")
        for _ in range(options.rounds if size == options.rows else 1):
            for side, (program, job) in sides(work, size).items():
                measured.append(measure(side, program, job, size, work))
                if program == "datasets":
                    check_tokens(measured[-1], work)
    tokens = _tokens_a_row(work)
    for leftover in [work / "datasets", *work.glob("prepare[0-9]"), *work.glob("generated-*")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    header = ["rows", "side", "rows/s", "times datasets.map", "peak memory over idle, MiB"]
    tables = [machine.table(header, summary(measured, options.rows)), f"{tokens:.0f} tokens a row."]
    machine.publish("prepare", options.out, facts, tables, [vars(one) for one in measured])


def _tokens_a_row(work: Path) -> float:
    """Of the last prepared run."""
    job = json.loads((work / "prepare0" / "config.json").read_text())
    values = bench_config(work, "prepare0", work / "none.jsonl", data={"pack_tokens": job["data"]["pack_tokens"]})
    manifest = find_packs(RunFolder.from_config(Config.model_validate(values))).manifest
    return float(manifest["num_tokens"] / manifest["num_train"])


if __name__ == "__main__":
    main()
