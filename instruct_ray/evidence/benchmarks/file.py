"""driver: reads `benchmarks.json`."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder

# Beside the evidence.
BENCHMARKS_FILE, BENCHMARK_ANSWERS_FILE = "benchmarks.json", "benchmark_answers.jsonl"


class BenchmarkComparison(BaseModel):
    """Tuned minus base."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    estimate: float
    lower: float | None
    upper: float | None
    p_value: float | None
    num_rows: int
    num_discordant: int


class BenchmarkResult(BaseModel):
    """One benchmark of general skill."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metric: str
    num_few_shot: int
    num_questions: int
    chance: float | None
    base: float
    tuned: float
    comparison: BenchmarkComparison
    problem: str | None


class BenchmarksFile(BaseModel):
    """The content of `benchmarks.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_digest: str
    """Of the tuned model."""
    base_digest: str
    settings: dict[str, Any]
    benchmarks: dict[str, BenchmarkResult]


def benchmarks_file(folder: RunFolder) -> Path:
    """Where the benchmarks of a run are written."""
    return folder.evidence_file.with_name(BENCHMARKS_FILE)


def load_benchmarks(path: Path) -> BenchmarksFile | None:
    """Read the file; None if `instruct-ray benchmark` was not run.

    Raises:
        InputError: it can't be used.
    """
    if not path.is_file():
        return None
    return parse_benchmarks(path.read_bytes(), str(path))


def parse_benchmarks(content: bytes, where: str) -> BenchmarksFile:
    """Read the content of the file.

    Raises:
        InputError: it can't be used.
    """
    try:
        return BenchmarksFile.model_validate(json.loads(content))
    except (ValueError, ValidationError) as error:
        raise InputError(f"{where}: can't be used; remove it and run `instruct-ray benchmark` again") from error
