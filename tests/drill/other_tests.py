"""Rows of the matrix that tests of other modules prove: run here, so that the table is whole."""

import subprocess
import sys
import time
from pathlib import Path

from tests.drill.lab import Figures, Lab

ROOT = Path(__file__).parents[2]


def stops(lab: Lab) -> Figures:
    """SIGTERM, Ctrl-C and `ray job stop`."""
    return run_tests("tests/jobs/test_stop.py", "tests/jobs/test_submit.py::test_ray_job_stop_commits_a_checkpoint")


def nonfinite(lab: Lab) -> Figures:
    """Losses and gradients that are no numbers, once and forever."""
    return run_tests("tests/training/worker/test_nonfinite.py")


def one_at_a_time(lab: Lab) -> Figures:
    """Two runs with one name at once."""
    return run_tests("tests/run/test_lock.py")


def run_tests(*names: str) -> Figures:
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    return Figures(says=f"{done.stdout.splitlines()[-1].strip('= ')}, {time.monotonic() - began:.0f} s")
