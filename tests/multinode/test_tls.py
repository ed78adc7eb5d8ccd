"""TLS between all nodes together with the token, as `cluster/components/tls` asks KubeRay for it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multinode import workloads
from tests.multinode.documents import find_document, render, shrink_cluster
from tests.multinode.kuberay import RayCluster
from tests.multinode.mlflow_deployment import MlflowDeployment
from tests.multinode.pods import TEST_ENVIRONMENT, Namespace, Pod
from tests.multinode.ray_jobs import SubmittedJob

pytestmark = [pytest.mark.multinode, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def cluster(namespace: Namespace, mlflow: MlflowDeployment) -> Iterator[RayCluster]:
    """The RayCluster with a certificate in all pods."""
    spec = shrink_cluster(find_document(render("overlays/cpu", "tls"), "RayCluster")["spec"])
    cluster = RayCluster(namespace, "tls", spec)
    cluster.start()
    yield cluster
    cluster.delete()


def test_a_run_over_tls_and_with_the_token(
    cluster: RayCluster, namespace: Namespace, shared: Path, prepared: str
) -> None:
    assert "CN = ray" in ask_for_certificate(f"{cluster.address}:6379")
    for pod in cluster.workers:
        answers = [ask_for_certificate(f"{pod.host.address}:{port}") for port in ports_of_raylet(pod)]
        assert any("CN = ray" in answer for answer in answers), answers
    workloads.copy_run(shared, prepared, "tls")
    job = SubmittedJob(namespace, cluster, "tls", workloads.job_command("tune", "tls"))
    assert job.wait() == "SUCCEEDED", job.log
    assert workloads.metrics_file(shared, "tls").read_text().count("\n") == 8 * workloads.STEPS_PER_EPOCH


def ports_of_raylet(pod: Pod) -> list[str]:
    """The ports on which a pod's raylet takes calls."""
    sockets = pod.host.run(["ss", "-Hltnp"], TEST_ENVIRONMENT).stdout.splitlines()
    return [line.split()[3].rpartition(":")[2] for line in sockets if '"raylet"' in line]


def ask_for_certificate(address: str) -> str:
    """What openssl says about the certificate of a server."""
    command = ["openssl", "s_client", "-connect", address, "-alpn", "h2"]
    return subprocess.run(command, input="", capture_output=True, text=True, timeout=30).stdout
