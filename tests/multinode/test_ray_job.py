"""The RayJob of `cluster/`: on a cluster of its own over three hosts, and again after a failure."""

import copy
from pathlib import Path

import pytest

from tests.multinode import workloads
from tests.multinode.documents import Document, change_entrypoint, find_document, shrink_cluster
from tests.multinode.pods import Namespace, Pod
from tests.multinode.ray_jobs import RayJob

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(900)]


@pytest.fixture
def ray_job(documents: list[Document]) -> Document:
    """The RayJob, with the tiny model and pods for two cores."""
    document = find_document(documents, "RayJob", "instruct-ray-tune")
    spec = document["spec"]
    spec["rayClusterSpec"] = shrink_cluster(spec["rayClusterSpec"])
    spec["entrypoint"] = change_entrypoint(spec["entrypoint"], workloads.CONFIG_FILE, "run.name=ray-job")
    return document


def test_the_tune_job_succeeds_and_its_cluster_is_deleted(
    namespace: Namespace, mlflow_pod: Pod, shared: Path, ray_job: Document
) -> None:
    job = RayJob(namespace, ray_job)
    hosts: set[str] = set()

    def see_workers(job: RayJob) -> None:
        assert job.cluster is not None
        hosts.update(pod.name for pod in workloads.nodes_of_training_workers(job.cluster))

    assert job.run(meanwhile=see_workers) == "SUCCEEDED", job.log
    print(job.log[-3000:])
    assert job.statuses == ["SUCCEEDED"]
    assert len(hosts) == 2
    assert (shared / "runs" / "ray-job" / "model" / "model.safetensors").is_file()
    assert [pod.name for pod in namespace.pods] == ["mlflow-0"]


def test_a_job_whose_head_is_lost_goes_on_by_itself(
    namespace: Namespace, mlflow_pod: Pod, shared: Path, ray_job: Document
) -> None:
    """Without a GCS that survives: the submitter or, at last, a new cluster runs the entrypoint again."""
    document = copy.deepcopy(ray_job)
    overrides = ("run.name=ray-job-2", "train.epochs=30", "train.checkpoint_every=8")
    document["spec"]["entrypoint"] = change_entrypoint(
        document["spec"]["entrypoint"].replace("run.name=ray-job", ""), workloads.CONFIG_FILE, *overrides
    )
    job = RayJob(namespace, document)
    metrics = workloads.metrics_file(shared, "ray-job-2")
    killed: list[int] = []

    def kill_head_once(job: RayJob) -> None:
        num_steps = metrics.read_text().count("\n") if metrics.exists() else 0
        if num_steps >= 60 and not killed:
            assert job.cluster is not None and job.cluster.head is not None
            killed.append(num_steps)
            job.cluster.head.kill()

    assert job.run(timeout=400, meanwhile=kill_head_once) == "SUCCEEDED", job.log
    print("MULTINODE retry: killed at", killed, job.statuses)
    assert killed
    assert metrics.read_text().count("\n") == 30 * workloads.STEPS_PER_EPOCH
