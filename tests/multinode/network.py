"""A network of hosts on this machine: a bridge, a namespace for each host, and the names of their addresses."""

import ipaddress
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.multinode.hosts import Host, ip

# The names of a network's bridge and namespaces are PREFIX, the pid of the tests, and a letter with a number.
PREFIX = "mn"
PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "chroot")
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

    def add_host(self, name: str, address: str) -> Host:
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

    def remove_host(self, host: Host) -> None:
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
