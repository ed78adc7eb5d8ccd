"""A Ray cluster with a token, of nodes that are processes of this machine, and the commands that are run on it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from tests.ports import find_free_ports

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
TOKEN = "a-token-for-tests-only-0123456789"


class RayNodes:
    """Starts and stops nodes; Ray's metrics are reported every second."""

    def __init__(self, log_dir: Path) -> None:
        # Ray puts Unix sockets there, whose paths must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._log_dir = log_dir
        self._nodes: list[subprocess.Popen[bytes]] = []
        port, dashboard_port = find_free_ports(2)
        self._address = f"127.0.0.1:{port}"
        self.dashboard = f"127.0.0.1:{dashboard_port}"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self.environment = inherited | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_ADDRESS": self._address,
            "RAY_metrics_report_interval_ms": "1000",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }

    def start_head(self, num_cpus: int) -> None:
        """Start the head node, and wait until its dashboard responds."""
        port, dashboard_port = self._address.rpartition(":")[2], self.dashboard.rpartition(":")[2]
        self._start("--head", f"--port={port}", f"--dashboard-port={dashboard_port}", f"--num-cpus={num_cpus}")
        deadline = time.monotonic() + 120
        while self.request_status("/api/prometheus/sd", TOKEN) != 200:
            assert self._nodes[0].poll() is None, "ray start failed"
            assert time.monotonic() < deadline, "the dashboard did not come up"
            time.sleep(0.5)

    def start_worker_node(self, num_cpus: int) -> None:
        """Start a further node."""
        self._start(f"--address={self._address}", f"--num-cpus={num_cpus}")

    def stop_worker_node(self) -> None:
        """Stop the node that was started last."""
        self._stop(self._nodes.pop())

    def stop(self) -> None:
        """Stop all nodes and remove their files."""
        while self._nodes:
            self._stop(self._nodes.pop())
        shutil.rmtree(self._folder, ignore_errors=True)

    def request_status(self, path: str, token: str | None) -> int:
        """The status that the dashboard responds with; 0 without a response."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"http://{self.dashboard}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def run(self, *arguments: str | Path) -> str:
        """Run a module of Python as a driver on the cluster; returns its standard output."""
        command = [sys.executable, "-m", *arguments]
        result = subprocess.run(
            command, env=self.environment, cwd=self._log_dir, capture_output=True, text=True, timeout=300, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def kill_a_training_worker(self) -> None:
        """Kill a worker of Ray Train with SIGKILL."""
        processes = [child for node in self._nodes for child in psutil.Process(node.pid).children(recursive=True)]
        [worker, *_] = [one for one in processes if "RayTrainWorker" in " ".join(one.cmdline())]
        worker.kill()

    def _start(self, *options: str) -> None:
        # An address of its own: Ray Train tells nodes apart by it.
        command = [BIN / "ray", "start", "--block", f"--node-ip-address=127.0.0.{len(self._nodes) + 1}", *options]
        # The default port may be taken by another node on this machine.
        [agent_port] = find_free_ports(1)
        command += [f"--dashboard-agent-listen-port={agent_port}", "--object-store-memory=100000000"]
        if "--head" in options:
            command += [f"--temp-dir={self._folder}", "--dashboard-host=127.0.0.1"]
        with (self._log_dir / f"node-{len(self._nodes)}.log").open("ab") as log:
            self._nodes.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            )

    def _stop(self, node: subprocess.Popen[bytes]) -> None:
        children = psutil.Process(node.pid).children(recursive=True)
        node.send_signal(signal.SIGKILL)
        for process in children:
            if process.is_running():
                process.kill()
        node.wait(timeout=60)
