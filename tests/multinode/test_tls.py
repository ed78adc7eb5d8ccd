"""TLS between all nodes together with the token, as KubeRay's `tlsOptions` set it up."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multinode import workloads
from tests.multinode.documents import Document, find_document, shrink_cluster
from tests.multinode.kuberay import RayCluster
from tests.multinode.pods import Namespace, Pod
from tests.multinode.ray_jobs import SubmittedJob

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(900)]

SECRET, FOLDER = "ray-tls", "/etc/ray/tls"
ENVIRONMENT = {
    "RAY_USE_TLS": "1",
    "RAY_TLS_SERVER_CERT": f"{FOLDER}/tls.crt",
    "RAY_TLS_SERVER_KEY": f"{FOLDER}/tls.key",
    "RAY_TLS_CA_CERT": f"{FOLDER}/ca.crt",
}


def make_certificate(folder: Path) -> dict[str, str]:
    """One certificate for all nodes, signed by an authority of its own; the keys are those of cert-manager."""
    folder.mkdir()
    names = "subjectAltName=DNS:*.instruct-ray.svc.cluster.local,DNS:localhost,IP:127.0.0.1"
    (folder / "names").write_text(names)
    openssl = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    sign = ["openssl", "x509", "-req", "-days", "2", "-in", "tls.csr"]
    for command in (
        [*openssl, "-x509", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt"],
        [*openssl, "-subj", "/CN=ray", "-keyout", "tls.key", "-out", "tls.csr"],
        [*sign, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-out", "tls.crt"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return {name: (folder / name).read_text() for name in ("tls.crt", "tls.key", "ca.crt")}


@pytest.fixture
def cluster(namespace: Namespace, mlflow_pod: Pod, documents: list[Document], tmp_path: Path) -> Iterator[RayCluster]:
    """The RayCluster with a certificate in all pods."""
    namespace.secrets[SECRET] = make_certificate(tmp_path / "tls")
    spec = shrink_cluster(find_document(documents, "RayCluster")["spec"])
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        pod["volumes"].append({"name": "tls", "secret": {"secretName": SECRET}})
        pod["containers"][0]["volumeMounts"].append({"name": "tls", "mountPath": FOLDER, "readOnly": True})
    cluster = RayCluster(namespace, "tls", spec, **ENVIRONMENT)
    cluster.start()
    yield cluster
    cluster.delete()


def test_a_run_over_tls_and_with_the_token(cluster: RayCluster, namespace: Namespace, shared: Path) -> None:
    seen = subprocess.run(
        ["openssl", "s_client", "-connect", f"{cluster.address}:6379", "-alpn", "h2"],
        input="",
        capture_output=True,
        text=True,
    )
    assert "CN = ray" in seen.stdout
    stages = [workloads.job_command(stage, "tls") for stage in ("prepare", "tune")]
    job = SubmittedJob(namespace, cluster, "tls", f'bash -c "{" && ".join(stages)}"')
    assert job.wait() == "SUCCEEDED", job.log
    assert workloads.metrics_file(shared, "tls").read_text().count("\n") == 8 * workloads.STEPS_PER_EPOCH
