"""Hosts on this machine, made of namespaces: each has its own address, hostname, processes, /dev/shm and /tmp."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
HOST_SCRIPT = Path(__file__).with_name("host.sh")
# Folders of this machine that every host has: the Python with the installed packages, and this project.
SHARED_PATHS = tuple(dict.fromkeys(str(Path(path).resolve()) for path in (sys.base_prefix, sys.prefix, ROOT)))


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine that a host has at another place."""

    source: Path
    target: str
    read_only: bool = False


class Host:
    """A machine of a network. It runs one command at a time, whose end ends all of its processes."""

    def __init__(self, name: str, address: str, namespace: str, link: str, folder: Path, hosts_file: Path) -> None:
        self.name, self.address, self.namespace, self.link = name, address, namespace, link
        self.log_file = folder / "log"
        self._root = folder / "root"
        self._root.mkdir(parents=True, exist_ok=True)
        self._hosts_file = hosts_file
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        mounts: Sequence[Mount] = (),
        user: str = "0:0",
        workdir: str = "/",
    ) -> None:
        """Start the first process of the host. Call it in the thread that lives as long as the host."""
        assert not self.is_running
        mount_list = ":".join(f"{m.source}={m.target}={'ro' if m.read_only else 'rw'}" for m in mounts)
        # With the tests, all hosts end.
        outside = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.namespace]
        outside += ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", str(HOST_SCRIPT)]
        arguments = [self.name, str(self._root), str(self._hosts_file), user, workdir, ":".join(SHARED_PATHS)]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*outside, *arguments, mount_list, *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        """Whether the command is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit code of the last command; None while it is running."""
        assert self._process is not None
        return self._process.poll()

    @property
    def log(self) -> str:
        """The output of all commands of this host."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    @property
    def processes(self) -> list[psutil.Process]:
        """The processes of the host, the first one at the front."""
        if self._process is None or not self.is_running:
            return []
        with suppress(psutil.NoSuchProcess):
            # The first one is `unshare`, which is not in the host.
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    @property
    def command_lines(self) -> list[str]:
        """The command lines of the host's processes."""
        lines = []
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                lines.append(" ".join(process.cmdline()))
        return lines

    def terminate(self) -> None:
        """Send SIGTERM to the first process."""
        for process in self.processes[:1]:
            process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill all processes, as if the machine were switched off."""
        for process in self.processes[:1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait(timeout=30)

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], user: str = "0:0", timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command beside the first process, as `kubectl exec` does, and wait for it."""
        first = self._wait_for_first_process()
        uid, gid = user.split(":")
        inside = ["nsenter", f"--target={first.pid}", "--all", "--root", "--wd", f"--setuid={uid}", f"--setgid={gid}"]
        return subprocess.run(
            [*inside, "--", *command], env=dict(environment), capture_output=True, text=True, timeout=timeout
        )

    def _wait_for_first_process(self, timeout: float = 30) -> psutil.Process:
        """The first process, once it has the files of the host: before that, its arguments name their place."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for first in self.processes[:1]:
                if str(self._root) not in first.cmdline():
                    return first
            time.sleep(0.05)
        raise TimeoutError(f"{self.name} did not start\n{self.log}")

    def wait(self, timeout: float) -> int:
        """Wait for the end of the command; returns its exit code."""
        assert self._process is not None
        return self._process.wait(timeout)

    def cut(self) -> None:
        """Cut the host from the network."""
        ip("link", "set", self.link, "down")

    def heal(self) -> None:
        """Connect the host to the network again."""
        ip("link", "set", self.link, "up")


def ip(*arguments: str) -> str:
    """Run `ip`; returns its output."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30).stdout
