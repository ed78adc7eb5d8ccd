"""The head of a Ray cluster, in processes of its own."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]


def environment(**more: str) -> dict[str, str]:
    """A shell of this project."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", **more}


def start_head() -> tuple[psutil.Process, dict[str, str]]:
    """A head node, and the environment to reach it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / f"head-{port}"
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=4", f"--port={port}"]
    command += ["--include-dashboard=false", f"--temp-dir={folder}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    head = psutil.Process(subprocess.Popen(command, env=environment(), **quiet).pid)
    deadline = time.monotonic() + 60
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert time.monotonic() < deadline, "the head did not come up"
        time.sleep(0.2)
    # The node itself comes up behind the port.
    time.sleep(5)
    return head, environment(RAY_ADDRESS=f"127.0.0.1:{port}")


def kill_tree(process: psutil.Process) -> None:
    """A process and all that it started, children first seen."""
    for each in [process, *process.children(recursive=True)]:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
