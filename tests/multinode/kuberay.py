"""Ray clusters of pods: what KubeRay does with the spec of a RayCluster."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from tests.multinode import certificates
from tests.multinode.certificates import ClusterCertificates
from tests.multinode.documents import Document, ray_start_command
from tests.multinode.pods import Namespace, Pod, add_suffix, full_name

GCS_STORAGE = "/data/gcs-storage"
# Of a cluster whose GCS survives the head: how long its workers wait for the new head.
RECONNECT_SECONDS = "600"
POLL_SECONDS = 0.2


class RayCluster:
    """The pods of a RayCluster. `reconcile` replaces those that are lost, when it is called."""

    def __init__(self, namespace: Namespace, name: str, spec: Document, **environment: str) -> None:
        """`environment` is set in all pods, beside what KubeRay sets."""
        self.name, self.spec = name, spec
        self._namespace = namespace
        self._service = f"{name}-head-svc"
        self.address = namespace.reserve_service(self._service)
        self.token = self._make_token()
        self._environment = environment
        self._certificates: ClusterCertificates | None = None
        if (spec.get("tlsOptions") or {}).get("enabled"):
            self._certificates = ClusterCertificates(namespace, name, self._service)
            self._environment = environment | certificates.ENVIRONMENT
        self.head: Pod | None = None
        self.workers: list[Pod] = []
        self._leaving: list[Pod] = []
        self.started_seconds = 0.0
        """How long `start` took."""

    def start(self, timeout: float = 120) -> None:
        """Start all pods and wait until all nodes have joined."""
        started = time.monotonic()
        self.reconcile()
        self.wait_until(self.is_healthy, timeout, "the head did not become healthy")
        self.reconcile()
        num_nodes = 1 + self._num_workers
        self.wait_until(lambda: len(self.alive_nodes()) == num_nodes, timeout, f"{num_nodes} nodes did not join")
        self.started_seconds = time.monotonic() - started

    def reconcile(self) -> None:
        """Replace pods that are lost or being deleted, restart containers that ended, kill those past their grace."""
        self._leaving = [pod for pod in self._leaving if not pod.remove_if_ended()]
        for pod in [pod for pod in self.workers if pod.is_deleted]:
            self.workers.remove(pod)
            self._leaving.append(pod)
        if self.head is not None and self.head.is_deleted and self.head.remove_if_ended():
            self.head = None
        if self.head is None:
            self.head = self._create_head()
        for pod in (self.head, *self.workers):
            pod.restart_if_ended()
        # The init container of KubeRay's workers waits for the head, too.
        if len(self.workers) < self._num_workers and self.is_healthy():
            for group in self.spec["workerGroupSpecs"]:
                num_pods = sum(pod.name.startswith(f"{self.name}-{group['groupName']}-") for pod in self.workers)
                self.workers += [self._create_worker(group) for _ in range(group["replicas"] - num_pods)]

    def delete(self) -> None:
        """Remove all pods at once."""
        for pod in [*self.workers, *self._leaving, *([] if self.head is None else [self.head])]:
            pod.remove()
        self.head, self.workers, self._leaving = None, [], []

    def wait_until(self, condition: Callable[[], Any], timeout: float, problem: str) -> None:
        """Wait for a condition, and reconcile meanwhile."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{problem} within {timeout:.0f} s\n{self.describe()}"
            time.sleep(POLL_SECONDS)
            if self.head is not None:
                self.reconcile()

    def request(self, path: str, method: str = "GET", body: Any = None, token: str | None = None) -> Any:
        """Call the dashboard, with the cluster's token unless another one is given; returns the JSON of the response.

        Raises:
            OSError: the call failed, or was refused.
        """
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(f"http://{self.address}:8265{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            content = response.read()
        return json.loads(content) if content.strip() else None

    def is_healthy(self) -> bool:
        """Whether the GCS answers, as KubeRay asks it."""
        url = f"http://{self.address}:8265/api/gcs_healthz"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return b"success" in response.read()
        except OSError:
            return False

    def alive_nodes(self) -> list[dict[str, Any]]:
        """The nodes that the GCS counts as alive; none while it does not answer."""
        try:
            nodes = self.request("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        except OSError:
            return []
        return [node for node in nodes if node["state"] == "ALIVE"]

    def describe(self) -> str:
        """The ends of the logs of all pods, for messages of failed tests."""
        pods = [*self.workers, *self._leaving, *([] if self.head is None else [self.head])]
        return "\n".join(f"--- {pod.name}\n{pod.host.log[-1500:]}" for pod in pods)

    @property
    def _num_workers(self) -> int:
        return sum(int(group["replicas"]) for group in self.spec["workerGroupSpecs"])

    def _create_head(self) -> Pod:
        group = self.spec["headGroupSpec"]
        spec = dict(group["template"]["spec"])
        environment = self._kuberay_environment("headgroup", "127.0.0.1")
        if self._is_fault_tolerant:
            environment |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": GCS_STORAGE}
            spec = _add_claim(spec, f"{self.name}-gcs", GCS_STORAGE)
        if self._certificates is not None:
            spec = self._certificates.add_to(spec, "head", self.address)
        pod = Pod(self._namespace, add_suffix(f"{self.name}-head"), spec, self.address, **environment)
        pod.start(_shell(ray_start_command(True, group, "")))
        return pod

    def _create_worker(self, group: Document) -> Pod:
        host = full_name(self._service)
        environment = self._kuberay_environment(group["groupName"], host)
        if self._is_fault_tolerant:
            environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = RECONNECT_SECONDS
        name = add_suffix(f"{self.name}-{group['groupName']}")
        spec, address = group["template"]["spec"], self._namespace.network.reserve_address(name)
        if self._certificates is not None:
            spec = self._certificates.add_to(spec, "worker", address)
        pod = Pod(self._namespace, name, spec, address, **environment)
        pod.start(_shell(ray_start_command(False, group, f"{host}:6379")))
        return pod

    def _kuberay_environment(self, group: str, head: str) -> dict[str, str]:
        return {
            "RAY_CLUSTER_NAME": self.name,
            "RAY_NODE_TYPE_NAME": group,
            "RAY_PORT": "6379",
            "RAY_ADDRESS": f"{head}:6379",
            **(
                {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
                if self.token
                else {"RAY_AUTH_MODE": "disabled"}
            ),
            **self._environment,
        }

    @property
    def _is_fault_tolerant(self) -> bool:
        options = self.spec.get("gcsFaultToleranceOptions")
        assert options is None or options["backend"] == "rocksdb", options
        return options is not None

    def _make_token(self) -> str:
        options = self.spec.get("authOptions") or {}
        if options.get("mode") != "token":
            return ""
        secret = self._namespace.secrets.setdefault(options.get("secretName", self.name), {})
        return secret.setdefault("auth_token", add_suffix("token") * 2)


def _shell(command: str) -> list[str]:
    return ["/bin/bash", "-c", "--", f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {command}"]


def _add_claim(spec: Document, claim: str, path: str) -> Document:
    """A pod's spec with the volume that KubeRay adds for the GCS."""
    (container,) = spec["containers"]
    mount = {"name": "gcs-storage", "mountPath": path}
    volume = {"name": "gcs-storage", "persistentVolumeClaim": {"claimName": claim}}
    container = container | {"volumeMounts": [*container.get("volumeMounts", []), mount]}
    return spec | {"containers": [container], "volumes": [*spec.get("volumes", []), volume]}
