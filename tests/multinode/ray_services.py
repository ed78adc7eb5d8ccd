"""RayServices: what KubeRay does with one, from the cluster to the applications that it sends to the dashboard."""

from typing import Any

import yaml

from tests.multinode.documents import Document
from tests.multinode.kuberay import RayCluster
from tests.multinode.pods import Namespace, add_suffix

SERVE_API = "/api/serve/applications/"
PORT = 8000


class RayService:
    """A cluster whose applications are those of `serveConfigV2`."""

    def __init__(self, namespace: Namespace, name: str, spec: Document) -> None:
        self.config: dict[str, Any] = yaml.safe_load(spec["serveConfigV2"])
        # What KubeRay sets for the clusters of services.
        environment = {
            "RAY_timeout_ms_task_wait_for_death_info": "0",
            "RAY_gcs_server_request_timeout_seconds": "5",
            "RAY_SERVE_KV_TIMEOUT_S": "5",
        }
        self.cluster = RayCluster(namespace, add_suffix(name), spec["rayClusterConfig"], **environment)

    def deploy(self, timeout: float = 240) -> None:
        """Send the applications to the dashboard of the running cluster, and wait until they run."""
        self.cluster.request(SERVE_API, "PUT", self.config)
        self.cluster.wait_until(self.is_running, timeout, "the applications did not run")

    def is_running(self) -> bool:
        """Whether all applications run; fails if one can't be deployed."""
        applications = self.applications
        failed = [a for a in applications.values() if a["status"] == "DEPLOY_FAILED"]
        assert not failed, failed
        return bool(applications) and all(a["status"] == "RUNNING" for a in applications.values())

    @property
    def applications(self) -> dict[str, Any]:
        """The applications by name, as the dashboard reports them; none while it does not answer."""
        try:
            applications: dict[str, Any] = self.cluster.request(SERVE_API)["applications"]
        except OSError:
            return {}
        return applications

    @property
    def addresses(self) -> list[str]:
        """The addresses behind the service of the endpoint: the workers', which have a proxy each."""
        return [f"http://{pod.host.address}:{PORT}" for pod in self.cluster.workers]
