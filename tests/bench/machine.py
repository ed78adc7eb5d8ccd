"""Shared by the benchmarks: the machine's description and peak, subprocesses, tables and result files."""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_ray.runtime_env import MALLOC_TUNABLES

ROOT = Path(__file__).parents[2]
CORES = os.cpu_count() or 1
CACHE = Path.home() / ".cache" / "instruct_ray_bench"
# Rows, depth and columns of matrix products: those in the layers of SmolLM2-135M, and two large squares.
GEMM_SHAPES = ((512, 576, 1536), (512, 1536, 576), (1024, 1024, 1024), (2048, 2048, 2048))
GEMM_SECONDS = 0.7


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make the command line parser of a benchmark."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench", help="folder for results and work files")
    return parser


def describe_machine() -> dict[str, Any]:
    """Describe the machine, its load and the date."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "gpu": _gpu_name(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "cpu": cpu.partition(":")[2].strip() or platform.processor(),
        "cores": CORES,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _gpu_name() -> str:
    """The names of the GPUs; empty if there is none."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return ", ".join(subprocess.run(command, capture_output=True, text=True).stdout.splitlines())


def publish(name: str, out: Path, machine: Mapping[str, Any], tables: Sequence[str], measured: Any) -> None:
    """Print the tables with their origin, and write them and all measurements to files."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    source = (
        f"Measured {machine['date']} with `python -m tests.bench.bench_{name}` on {machine['cores']} cores of "
        f"{machine['cpu']}, {machine['memory_gib']} GiB{gpu} (load before: {machine['load_before']})."
    )
    text = "\n\n".join([*tables, source]) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text)
    (out / f"{name}.json").write_text(json.dumps({"machine": machine, "measured": measured}, indent=1) + "\n")
    print(f"\n{text}\n-> {out / name}.json, .md", flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format the median and range of repeated measurements."""
    median = statistics.median(values)
    if len(values) == 1:
        return f"{median:,.{digits}f}"
    return f"{median:,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def log(text: str) -> None:
    """Print a line of progress with the time of day."""
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", flush=True)


def environment(threads: int = CORES) -> dict[str, str]:
    """Build the environment variables of every side: the number of threads, and the malloc settings of our workers.

    Without these settings, page faults cost plain torch programs such as TRL several times more than their arithmetic.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "GLIBC_TUNABLES": MALLOC_TUNABLES,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "disabled",
    }


def restart_with_environment(module: str) -> None:
    """Restart this program with `environment`, whose malloc settings are only read at start; no-op if already set."""
    if os.environ.get("GLIBC_TUNABLES") != MALLOC_TUNABLES:
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **environment()})


def run_python(
    python: Path | str, args: Sequence[str], env: Mapping[str, str], log_file: Path, *, nice: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a Python program in the repository's root, with its output in a log file.

    Raises:
        RuntimeError: it failed; the message has its last lines of output.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("w") as file:
        command = ["nice", "-n", str(nice), str(python), *args]
        process = subprocess.run(
            command, cwd=ROOT, env=_merge_environment(env), stdout=file, stderr=subprocess.STDOUT, text=True
        )
    if process.returncode:
        tail = "\n".join(log_file.read_text().splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}:\n{tail}")
    return process


def _merge_environment(env: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `env`, without PYTHONPATH, since peers have other packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | dict(env)


def gemm_peak(threads: int) -> float:
    """Measure the GFLOP/s of the fastest bf16 matrix product in torch, in a subprocess."""
    command = [sys.executable, "-m", "tests.bench.machine", str(threads)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(process.stdout)


def _measure_gemm(threads: int) -> float:
    import torch  # noqa: PLC0415  (seconds, and this module is also read where there is no torch)

    torch.set_num_threads(threads)
    best = 0.0
    for rows, depth, columns in GEMM_SHAPES:
        a = torch.randn(rows, depth, dtype=torch.bfloat16)
        b = torch.randn(columns, depth, dtype=torch.bfloat16)
        end = time.perf_counter() + GEMM_SECONDS
        while (start := time.perf_counter()) < end:
            torch.nn.functional.linear(a, b)
            best = max(best, 2 * rows * depth * columns / (time.perf_counter() - start) / 1e9)
    return best


if __name__ == "__main__":
    print(_measure_gemm(int(sys.argv[1])))
