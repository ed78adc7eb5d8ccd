"""Pods on hosts of their own: what a kubelet does with a pod's spec."""

import re
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.multinode.documents import CLUSTER, Document
from tests.multinode.hosts import Host, Mount
from tests.multinode.network import Network

# Where the Dockerfile puts the project, and its user and group.
IMAGE_WORKDIR = "/home/ray/instruct-ray"
IMAGE_USER = "1000:100"
ROOT = Path(__file__).parents[2]
PATH = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
# Of all objects in `cluster/`.
NAMESPACE = "instruct-ray"
DEFAULT_GRACE_SECONDS = 30.0
# What differs from the image: where the packages are, and that nothing is sent or downloaded.
TEST_ENVIRONMENT = {
    "PATH": PATH,
    "HOME": "/home/ray",
    "PYTHONPATH": IMAGE_WORKDIR,
    "PYTHONDONTWRITEBYTECODE": "1",
    # Names are in the hosts' /etc/hosts, which gRPC's own resolver does not read. A real cluster has a DNS server.
    "GRPC_DNS_RESOLVER": "native",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Namespace:
    """A Kubernetes namespace: volumes, secrets and the names of services. Everything in it is removed with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = Network(folder / "hosts")
        self.secrets: dict[str, dict[str, str]] = {}
        self.pods: list[Pod] = []

    def claim_folder(self, name: str) -> Path:
        """The content of a PersistentVolumeClaim, which all of its pods share."""
        folder = self.folder / "claims" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            # "Writable for uid 1000, gid 100".
            folder.chmod(0o777)
        return folder

    def reserve_service(self, name: str) -> str:
        """The address of a service. The pod behind it gets it: there is no other one."""
        return self.network.reserve_address(name, f"{name}.{NAMESPACE}", full_name(name))

    def secret_folder(self, volume: Mapping[str, Any]) -> Path:
        """A folder with the keys of a volume's secret as files."""
        secret = self.secrets[volume["secretName"]]
        paths = {item["key"]: item["path"] for item in volume.get("items", [])} or {key: key for key in secret}
        folder = self.folder / "secrets" / volume["secretName"]
        folder.mkdir(parents=True, exist_ok=True)
        for key, path in paths.items():
            # Pods that run see the change, and never half a file.
            new = folder / f"{path}.new"
            new.write_text(secret[key])
            new.rename(folder / path)
        return folder

    def remove(self) -> None:
        """Kill all pods and remove the network."""
        self.network.remove()


class Pod:
    """A pod of one container."""

    def __init__(
        self, namespace: Namespace, name: str, spec: Document, address: str | None = None, **environment: str
    ) -> None:
        """`address` is reserved already, or the pod gets a new one; `environment` is added to that of the container."""
        self.name, self.spec = name, spec
        (self.container,) = spec["containers"]
        self._namespace = namespace
        self._environment = environment
        if address is None:
            address = namespace.network.reserve_address(name)
        else:
            namespace.network.add_names(address, name)
        self.host: Host = namespace.network.add_host(name, address)
        self.num_starts = 0
        self._kill_at: float | None = None
        namespace.pods.append(self)

    def start(self, command: list[str]) -> None:
        """Start the container, or start it again after it has ended."""
        self.num_starts += 1
        self._command = command
        self.host.start(command, self.environment, self._mounts(), self._user(), IMAGE_WORKDIR)

    def restart_if_ended(self) -> None:
        """What `restartPolicy: Always` does, which is the default."""
        if not self.host.is_running and not self.is_deleted and self.spec.get("restartPolicy", "Always") == "Always":
            self.start(self._command)

    def runs(self, command: str) -> bool:
        """Whether one of the pod's processes has this in its command line."""
        return any(command in line for line in self.host.command_lines)

    @property
    def is_deleted(self) -> bool:
        """Whether the pod is being deleted, or gone."""
        return self._kill_at is not None

    def begin_deletion(self) -> None:
        """Delete the pod as an eviction does: SIGTERM now, SIGKILL after the grace period (by `reconcile`)."""
        grace = float(self.spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS))
        self._kill_at = time.monotonic() + grace
        self.host.terminate()

    def kill(self) -> None:
        """The machine of the pod is lost."""
        self._kill_at = time.monotonic()
        self.host.kill()

    def remove_if_ended(self) -> bool:
        """Whether a pod that is being deleted is gone now; kills it after the grace period."""
        if self.host.is_running and self._kill_at is not None and time.monotonic() > self._kill_at:
            self.host.kill()
        if self.host.is_running:
            return False
        self.remove()
        return True

    def remove(self) -> None:
        """Remove the pod at once."""
        if self in self._namespace.pods:
            self._namespace.pods.remove(self)
            self._namespace.network.remove_host(self.host)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the container: of the image, of the spec, and what was added."""
        fields = {"metadata.name": self.name, "metadata.namespace": NAMESPACE, "status.podIP": self.host.address}
        variables = image_environment() | TEST_ENVIRONMENT | self._environment
        for entry in self.container.get("envFrom", []):
            reference = entry["secretRef"]
            if reference["name"] in self._namespace.secrets or not reference.get("optional"):
                variables |= self._namespace.secrets[reference["name"]]
        for entry in self.container.get("env", []):
            source = entry.get("valueFrom")
            if source is None:
                variables[entry["name"]] = entry["value"]
            elif "fieldRef" in source:
                variables[entry["name"]] = fields[source["fieldRef"]["fieldPath"]]
            else:
                key = source["secretKeyRef"]
                variables[entry["name"]] = self._namespace.secrets[key["name"]][key["key"]]
        return variables

    def _mounts(self) -> list[Mount]:
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        mounts = [Mount(ROOT, IMAGE_WORKDIR, read_only=True)]
        for entry in self.container.get("volumeMounts", []):
            if volumes[entry["name"]].get("emptyDir", {}).get("medium") == "Memory":
                # Each host has a /dev/shm of its own.
                assert entry["mountPath"] == "/dev/shm", entry
                continue
            source = self._volume_folder(volumes[entry["name"]]) / entry.get("subPath", "")
            source.mkdir(parents=True, exist_ok=True)
            mounts.append(Mount(source, entry["mountPath"], bool(entry.get("readOnly", False))))
        return mounts

    def _volume_folder(self, volume: Mapping[str, Any]) -> Path:
        if "persistentVolumeClaim" in volume:
            return self._namespace.claim_folder(volume["persistentVolumeClaim"]["claimName"])
        if "secret" in volume:
            return self._namespace.secret_folder(volume["secret"])
        assert volume.keys() & {"emptyDir", "ephemeral"}, f"volume {volume}"
        folder = self._namespace.folder / "volumes" / self.name / volume["name"]
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(0o777)
        return folder

    def _user(self) -> str:
        context = {**self.spec.get("securityContext", {}), **self.container.get("securityContext", {})}
        if "runAsUser" not in context:
            return IMAGE_USER
        return f"{context['runAsUser']}:{context.get('runAsGroup', context['runAsUser'])}"


def image_environment() -> dict[str, str]:
    """The variables that the Dockerfile sets."""
    return dict(re.findall(r"^ENV (\w+)=(\S+)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE))


def full_name(service: str) -> str:
    """The name of a service that a cluster's DNS resolves from anywhere in the cluster."""
    return f"{service}.{NAMESPACE}.svc.cluster.local"


def add_suffix(name: str) -> str:
    """A name of an object that a controller makes."""
    return f"{name}-{secrets.token_hex(3)}"
