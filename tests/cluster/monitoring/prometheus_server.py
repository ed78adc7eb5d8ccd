"""A real Prometheus with the configuration of cluster/monitoring, from Debian's package `prometheus`."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.mlflow_server import responds
from tests.ports import find_free_ports

MONITORING = Path(__file__).parents[3] / "cluster" / "monitoring"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus is not installed (Debian: apt-get install prometheus)",
)


def copy_configuration(folder: Path) -> Path:
    """Copy cluster/monitoring, and make the rules as the first lines of prometheus.yml say; returns the new folder."""
    copy = folder / "monitoring"
    shutil.copytree(MONITORING, copy)
    [command] = re.findall(r"python -c (\".*\")$", (copy / "prometheus.yml").read_text(), re.MULTILINE)
    subprocess.run(f"{sys.executable} -c {command}", shell=True, cwd=copy, check=True, timeout=60)
    return copy


class PrometheusServer:
    """A server that scrapes every second."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes now."""
        targets: list[dict[str, Any]] = self._get("targets", {})["activeTargets"]
        return targets

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        result: list[dict[str, Any]] = self._get("query", {"query": expression})["result"]
        return result

    def query_since(self, expression: str, start: float) -> list[dict[str, Any]]:
        """The series that an expression has had since a time, every second."""
        window = {"start": start, "end": time.time(), "step": 1}
        result: list[dict[str, Any]] = self._get("query_range", {"query": expression} | window)["result"]
        return result

    def _get(self, path: str, parameters: dict[str, Any]) -> dict[str, Any]:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as response:
            data: dict[str, Any] = json.load(response)["data"]
        return data


@contextmanager
def run_prometheus(folder: Path, dashboard: str, token: str) -> Iterator[PrometheusServer]:
    """Run a server that finds the nodes of a Ray cluster.

    Args:
        folder: For its configuration and its data.
        dashboard: Host and port of Ray's dashboard.
        token: Ray's token.
    """
    configuration = copy_configuration(folder)
    (configuration / "ray_token").write_text(token)
    file = configuration / "prometheus.yml"
    text = file.read_text().replace("127.0.0.1:8265", dashboard)
    # Not after each 15 seconds: the test is short.
    file.write_text(text.replace("interval: 15s", "interval: 1s").replace("interval: 30s", "interval: 1s"))
    [port] = find_free_ports(1)
    command = ["prometheus", f"--config.file={file}", f"--web.listen-address=127.0.0.1:{port}"]
    command += [f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=configuration)
    try:
        deadline = time.monotonic() + 60
        while not responds(f"http://127.0.0.1:{port}/-/ready"):
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline, "Prometheus did not start in time"
            time.sleep(0.2)
        yield PrometheusServer(port)
    finally:
        process.terminate()
        process.wait(timeout=60)
