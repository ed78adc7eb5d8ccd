"""Runs cases of the fault drill for tests.

`tests.drill` runs in its own process, since it starts and breaks Ray clusters.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Case -> its report; see tests.drill.harness.CaseResult.
Reports = dict[str, dict[str, Any]]


def run_drill(folder: Path, *cases: str) -> Reports:
    """Run cases in one process, so that they share the uninterrupted run."""
    report_file = folder / "reports.json"
    command = [sys.executable, "-m", "tests.drill", *cases, "--json", str(report_file)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert report_file.is_file(), result.stdout + result.stderr
    reports: list[dict[str, Any]] = json.loads(report_file.read_text())
    return {report["case"]: report for report in reports}


def get_passed(reports: Reports, case: str) -> dict[str, Any]:
    """The report of a case, which must have passed."""
    assert reports[case]["verdict"] != "FAILED", reports[case]["error"]
    if reports[case]["skipped"]:
        pytest.skip(reports[case]["skipped"])
    return reports[case]
