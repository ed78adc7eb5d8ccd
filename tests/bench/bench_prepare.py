"""Measures rows per second and memory of `prepare`, against a `datasets.map` that only tokenizes.

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
from tests.bench.examples import bench_config, make_examples, make_renderer, resolve_base
from tests.bench.memory import run_watched
from tests.bench.rows import generate_rows, write_jsonl

# Rows whose tokens are compared between the sides.
NUM_CHECKED = 200
PACK_TOKENS = 2048


@dataclass(frozen=True)
class Measurement:
    """The result of one side in one round."""

    side: str
    rows: int
    seconds: float
    peak_bytes: int
    details: dict[str, Any]


def make_jobs(work: Path, num_rows: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Make (program, job) of each side by name."""
    source = work / f"generated-{num_rows}.jsonl"
    jobs: dict[str, tuple[str, dict[str, Any]]] = {}
    options: dict[str, dict[str, Any]] = {"prepare": {}}
    if "near_duplicates" in DataConfig.model_fields:
        default = DataConfig.model_fields["near_duplicates"].default
        options = {
            "prepare, without near-duplicate search": {"near_duplicates": None},
            "prepare": {"near_duplicates": default},
        }
    for number, (side, data) in enumerate(options.items()):
        data = {"pack_tokens": PACK_TOKENS, **data}
        jobs[side] = ("ours", {"config": bench_config(work, f"prepare{number}", source, data=data)})
    jobs["datasets.map, rendering and tokenizing only"] = (
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


def measure(side: str, program: str, job: dict[str, Any], num_rows: int, work: Path) -> Measurement:
    """Run one side once, without cached results."""
    job_file, result_file = work / "prepare-job.json", work / "prepare-result.json"
    job_file.write_text(json.dumps(job))
    if program == "ours":
        shutil.rmtree(work / job["config"]["run"]["name"], ignore_errors=True)
    command = [sys.executable, "-m", "tests.bench.prepare_sides", program, str(job_file), str(result_file)]
    # `datasets` has one process per core, so the tokenizer must not use threads.
    memory = run_watched(
        command,
        {"HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"},
        work / "logs" / f"prepare-{program}.log",
    )
    details = json.loads(result_file.read_text())
    growth = memory.growth(details["idle_at"], details["finished_at"])
    measurement = Measurement(side, num_rows, details["seconds"], growth, details)
    machine.log(f"{side}: {num_rows / measurement.seconds:,.0f} rows/s, {growth / 2**20:,.0f} MiB over idle")
    return measurement


def check_tokens(measurement: Measurement, work: Path) -> None:
    """Check that both sides produce the same tokens.

    Raises:
        AssertionError: the tokens of a row differ.
    """
    examples = make_examples(make_renderer(resolve_base(work)), list(generate_rows(NUM_CHECKED)))
    for example, row in zip(examples, measurement.details.pop("first"), strict=True):
        if [list(example.prompt_ids), list(example.completion_ids)] != [row["prompt_ids"], row["completion_ids"]]:
            raise AssertionError(f"datasets.map and the renderer produce different tokens for row {example.row_id}")


def summarize(measurements: list[Measurement], num_rows: int) -> list[list[object]]:
    """Build one table row per side and size."""
    names = list(dict.fromkeys(measurement.side for measurement in measurements))
    lines: list[list[object]] = []
    for size in (num_rows, 2 * num_rows):
        reference = [run.seconds for run in measurements if run.side == names[-1] and run.rows == size]
        for name in names:
            runs = [run for run in measurements if run.side == name and run.rows == size]
            if not runs or not reference:
                continue
            ratio = statistics.median(reference) / statistics.median(run.seconds for run in runs)
            rates = machine.spread([size / run.seconds for run in runs], 0)
            peak = max(run.peak_bytes for run in runs) / 2**20
            lines.append([f"{size:,}", name, rates, "" if name == names[-1] else f"{ratio:.2f}", f"{peak:,.0f}"])
    return lines


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = machine.make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="also measured once with twice as many rows")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--once", action="store_true", help="skip the run with twice as many rows")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print its table."""
    options = parse()
    work = options.out / "work"
    facts, measurements = machine.describe_machine(), []
    for size in (options.rows,) if options.once else (options.rows, 2 * options.rows):
        write_jsonl(generate_rows(size), work / f"generated-{size}.jsonl")
        for _ in range(options.rounds if size == options.rows else 1):
            for side, (program, job) in make_jobs(work, size).items():
                measurements.append(measure(side, program, job, size, work))
                if program == "datasets":
                    check_tokens(measurements[-1], work)
    tokens = _mean_tokens_per_row(work)
    for leftover in [work / "datasets", *work.glob("prepare[0-9]"), *work.glob("generated-*")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    header = ["rows", "side", "rows/s", "speed-up over datasets.map", "peak memory over idle, MiB"]
    tables = [machine.table(header, summarize(measurements, options.rows)), f"{tokens:.0f} tokens per row."]
    machine.publish("prepare", options.out, facts, tables, [vars(measurement) for measurement in measurements])


def _mean_tokens_per_row(work: Path) -> float:
    """Compute the mean number of tokens per row of the last prepared run."""
    job = json.loads((work / "prepare0" / "config.json").read_text())
    values = bench_config(work, "prepare0", work / "none.jsonl", data={"pack_tokens": job["data"]["pack_tokens"]})
    manifest = find_packs(RunFolder.from_config(Config.model_validate(values))).manifest
    return float(manifest["num_tokens"] / manifest["num_train"])


if __name__ == "__main__":
    main()
