"""Hosts on this machine, made of namespaces: each has its own address, hostname, processes, /dev/shm and /tmp."""

import ipaddress
import itertools
import json
import os
import shutil
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
# The names of a network's bridge and namespaces are PREFIX, the pid of the tests, and a letter with a number.
PREFIX = "mn"
PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "chroot")
# Folders of this machine that every host has: the Python with the installed packages, and this project.
SHARED_PATHS = tuple(dict.fromkeys(str(Path(path).resolve()) for path in (sys.base_prefix, sys.prefix, ROOT)))
_numbers = itertools.count()


def why_not() -> str | None:
    """Why there can be no hosts on this machine; None if there can."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"{', '.join(missing)} is not installed"
    if os.geteuid() != 0:
        return "namespaces with a network need root"
    name = f"{PREFIX}{os.getpid()}t"
    attempts = (
        ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        ["ip", "link", "add", name, "type", "bridge"],
        ["ip", "link", "del", name],
        ["ip", "netns", "add", name],
        ["ip", "netns", "del", name],
    )
    for command in attempts:
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            return f"`{' '.join(command)}` failed: {result.stderr.strip()}"
    return None


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine that a host has at another place."""

    source: Path
    target: str
    read_only: bool = False


class Network:
    """A bridge that connects hosts with each other and with this machine, and the names of their addresses."""

    def __init__(self, folder: Path) -> None:
        remove_leftovers()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._id = f"{PREFIX}{os.getpid()}"
        self._bridge = f"{self._id}b{next(_numbers)}"
        self._addresses = find_free_subnet().hosts()
        self.gateway = str(next(self._addresses))
        """The address of this machine."""
        self._hosts_file = folder / "hosts"
        self._hosts_file.write_text("127.0.0.1 localhost\n")
        self.hosts: list[Host] = []
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{self.gateway}/24", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")

    def reserve_address(self, *names: str) -> str:
        """An address of no other host, which all hosts find by these names."""
        address = str(next(self._addresses))
        self.add_names(address, *names)
        return address

    def add_names(self, address: str, *names: str) -> None:
        """Let all hosts find an address by names."""
        with self._hosts_file.open("a") as file:
            file.write(f"{address} {' '.join(names)}\n")

    def add_host(self, name: str, address: str) -> "Host":
        """Add a host, without processes."""
        number = next(_numbers)
        namespace, outside = f"{self._id}h{number}", f"{self._id}v{number}"
        ip("netns", "add", namespace)
        ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("link", "set", outside, "master", self._bridge)
        ip("link", "set", outside, "up")
        ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            ip("-n", namespace, "link", "set", link, "up")
        # Programs find their own address by the route to the internet.
        ip("-n", namespace, "route", "add", "default", "via", self.gateway)
        host = Host(name, address, namespace, outside, self.folder / f"{name}-{number}", self._hosts_file)
        self.hosts.append(host)
        return host

    def remove_host(self, host: "Host") -> None:
        """Kill a host's processes and remove it."""
        host.kill()
        ip("netns", "del", host.namespace)
        # Otherwise its address could not be used again at once.
        subprocess.run(["ip", "link", "del", host.link], capture_output=True)
        self.hosts.remove(host)

    def remove(self) -> None:
        """Remove all hosts and the bridge."""
        for host in list(self.hosts):
            self.remove_host(host)
        ip("link", "del", self._bridge)


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
        first = self.processes[0]
        uid, gid = user.split(":")
        inside = ["nsenter", f"--target={first.pid}", "--all", "--root", "--wd", f"--setuid={uid}", f"--setgid={gid}"]
        return subprocess.run(
            [*inside, "--", *command], env=dict(environment), capture_output=True, text=True, timeout=timeout
        )

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


def find_free_subnet() -> ipaddress.IPv4Network:
    """A subnet of 254 addresses that this machine uses for nothing else."""
    links = json.loads(ip("-json", "addr"))
    used = [
        ipaddress.ip_interface(f"{address['local']}/{address['prefixlen']}").network
        for link in links
        for address in link.get("addr_info", [])
        if address["family"] == "inet"
    ]
    # Two test runs that start at the same time rarely begin with the same one.
    for number in range(256):
        subnet = ipaddress.IPv4Network(f"10.87.{(os.getpid() + number) % 256}.0/24")
        if not any(subnet.overlaps(other) for other in used):
            return subnet
    raise AssertionError("no free subnet below 10.87")


def remove_leftovers() -> None:
    """Remove the namespaces and bridges of test runs that were killed."""
    namespaces = [line.split()[0] for line in ip("netns", "list").splitlines()]
    for name in namespaces:
        if _owner_is_dead(name):
            for pid in ip("netns", "pids", name).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.1)
            ip("netns", "del", name)
    for link in json.loads(ip("-json", "link")):
        if _owner_is_dead(link["ifname"]):
            subprocess.run(["ip", "link", "del", link["ifname"]], capture_output=True)


def _owner_is_dead(name: str) -> bool:
    pid = "".join(itertools.takewhile(str.isdigit, name.removeprefix(PREFIX)))
    return name.startswith(PREFIX) and bool(pid) and not psutil.pid_exists(int(pid))
