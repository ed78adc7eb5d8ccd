"""A real MLflow server that a test can pause, kill and restart."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.ports import find_free_ports


class MlflowServer:
    """A server process; its port and its database in `folder` survive a restart.

    `options` and `environment` replace those of a server on SQLite that keeps files in `folder`.
    """

    def __init__(
        self, folder: Path, options: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        [self._port] = find_free_ports(1)
        self._folder = folder
        on_sqlite = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/art"]
        self._options = on_sqlite if options is None else list(options)
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the server and wait until it responds."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", *self._options]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)
        deadline = time.monotonic() + 120
        while not responds(f"{self.uri}/health"):
            assert self._process.poll() is None, "the server exited"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.2)

    def pause(self) -> None:
        """Make the server hang: the kernel accepts connections, but there is no response."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue a paused server."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        for process in [*parent.children(recursive=True), parent]:
            process.send_signal(number)


def responds(url: str) -> bool:
    """Whether a GET request to the URL succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
