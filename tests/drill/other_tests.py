"""Cases that are ordinary tests of other modules, run here too so that the table is complete."""

import subprocess
import sys
import time
from pathlib import Path

from tests.drill.harness import CaseResult, DrillHarness

ROOT = Path(__file__).parents[2]


def run_stop_tests(harness: DrillHarness) -> CaseResult:
    """SIGTERM, Ctrl-C and `ray job stop`."""
    return _run_tests("tests/jobs/test_stop.py", "tests/jobs/test_submit.py::test_ray_job_stop_commits_a_checkpoint")


def run_nonfinite_tests(harness: DrillHarness) -> CaseResult:
    """Non-finite losses and gradients, at one step and at every step."""
    return _run_tests("tests/training/worker/test_nonfinite.py")


def run_lock_tests(harness: DrillHarness) -> CaseResult:
    """Two processes that work on the same run."""
    return _run_tests("tests/run/test_lock.py")


def _run_tests(*names: str) -> CaseResult:
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]
    return CaseResult(note=f"{result.stdout.splitlines()[-1].strip('= ')}, {time.monotonic() - started:.0f} s")
