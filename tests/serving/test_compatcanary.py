"""CompatCanary, an independent scanner for OpenAI-compatible endpoints, finds nothing to complain about.

It is an npm package without dependencies: `npm install compatcanary@0.2.2`, then COMPATCANARY=PATH of its src/cli.js.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCANNER = os.environ.get("COMPATCANARY")
pytestmark = pytest.mark.skipif(
    SCANNER is None or shutil.which("node") is None, reason="needs node, and COMPATCANARY=PATH of the scanner's cli.js"
)


def test_compatcanary(calculator_url: str, tmp_path: Path) -> None:
    assert SCANNER is not None
    report = tmp_path / "report.json"
    options = ["--base-url", calculator_url, "--model", "calculator", "--format", "json", "--output", str(report)]
    scan = subprocess.run(["node", SCANNER, "scan", *options], capture_output=True, text=True, check=False)
    assert report.exists(), scan.stderr
    results = {one["id"]: (one["status"], one["summary"]) for one in json.loads(report.read_text())["results"]}
    assert len(results) >= 7 and {status for status, _ in results.values()} == {"pass"}, results
