"""A Ray cluster of one node that requires a token, to which jobs are submitted over HTTP."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray

from tests.ports import find_free_ports

BIN = Path(sys.executable).parent
TOKEN = "a-token-for-tests-only-0123456789"
# Labels of the node.
LABELS = "market=spot"


@dataclass(frozen=True)
class TokenCluster:
    """The addresses of a cluster."""

    dashboard: str
    """That jobs are submitted to."""
    address: str
    """That programs on the node join."""


def user_environment() -> dict[str, str]:
    """The environment of a cluster user: the token, and the project's Python first on the path."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return inherited | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PATH": f"{BIN}:{os.environ['PATH']}"}


@contextmanager
def token_cluster(num_cpus: int = 4) -> Iterator[TokenCluster]:
    """Start a head node."""
    # Ray puts Unix sockets there, whose paths must be short.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    port, gcs_port, agent_port = find_free_ports(3)
    command = [BIN / "ray", "start", "--head", "--block", f"--num-cpus={num_cpus}", f"--temp-dir={folder}"]
    command += [f"--port={gcs_port}", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1"]
    # The default port may be taken by another cluster on this machine, such as that of other tests.
    command += [f"--dashboard-agent-listen-port={agent_port}", f"--labels={LABELS}"]
    head = subprocess.Popen(
        command, env=user_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    cluster = TokenCluster(f"http://127.0.0.1:{port}", f"{ray.util.get_node_ip_address()}:{gcs_port}")
    deadline = time.monotonic() + 120
    try:
        while fetch_status_code(f"{cluster.dashboard}/api/jobs/", TOKEN) != 200:
            assert head.poll() is None, "ray start failed"
            assert time.monotonic() < deadline, "the dashboard did not come up"
            time.sleep(0.5)
        yield cluster
    finally:
        for process in psutil.Process(head.pid).children(recursive=True):
            process.kill()
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def fetch_status_code(url: str, token: str | None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
