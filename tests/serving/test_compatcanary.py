"""CompatCanary, an independent scanner for OpenAI-compatible endpoints, finds nothing to complain about.

It is an npm package without dependencies: `npm install compatcanary@0.2.2`, then COMPATCANARY=PATH of its src/cli.js.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving import calculator
from tests.serving.calculator import make_definition

SCANNER = os.environ.get("COMPATCANARY")
pytestmark = pytest.mark.skipif(
    SCANNER is None or shutil.which("node") is None, reason="needs node, and COMPATCANARY=PATH of the scanner's cli.js"
)


def test_compatcanary(tmp_path: Path) -> None:
    assert SCANNER is not None
    folder, report = tmp_path / "model", tmp_path / "report.json"
    renderer = calculator.tune(folder, make_definition(), are_special=True)
    with calculator.serve(folder, renderer, "calculator") as url:
        options = ["--base-url", url, "--model", "calculator", "--format", "json", "--output", str(report)]
        scan = subprocess.run(["node", SCANNER, "scan", *options], capture_output=True, text=True, check=False)
    assert report.exists(), scan.stderr
    results = json.loads(report.read_text())
    print(json.dumps(results, indent=1))
    assert scan.returncode == 0, json.dumps(results, indent=1)
