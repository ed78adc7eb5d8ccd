"""The RayJob of `cluster/`: on a cluster of its own over three hosts, and again after a failure."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.drill.monitor import RunMonitor
from tests.multinode import workloads
from tests.multinode.documents import Document, change_entrypoint, find_document, shrink_cluster
from tests.multinode.mlflow_deployment import MlflowDeployment
from tests.multinode.pods import Namespace
from tests.multinode.ray_jobs import RayJob
from tests.multinode.report import record_fault

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(900)]

# Instead of the minutes that pods have: a test must not wait that long.
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
DRAIN_SECONDS, GRACE_SECONDS = 15, 40


@pytest.fixture
def make_ray_job(documents: list[Document]) -> Callable[..., Document]:
    """Makes one of the RayJobs, with the tiny model and pods for two cores."""

    def make_ray_job(job: str, run: str, *overrides: str) -> Document:
        document = find_document(documents, "RayJob", f"instruct-ray-{job}")
        spec = document["spec"]
        spec["rayClusterSpec"] = shrink_cluster(spec["rayClusterSpec"])
        entrypoint = change_entrypoint(spec["entrypoint"], workloads.CONFIG_FILE, f"run.name={run}", *overrides)
        spec["entrypoint"] = entrypoint
        return document

    return make_ray_job


def test_the_pipeline_registers_a_version_and_an_evicted_pod_costs_at_most_two_steps(
    namespace: Namespace, mlflow: MlflowDeployment, shared: Path, make_ray_job: Callable[..., Document]
) -> None:
    # One failure, since Ray stops the node at the drain deadline itself: a millisecond before it, the node counts as
    # failed, after it as preempted, which is no failure.
    overrides = ("train.epochs=50", "train.checkpoint_every=200", "train.max_failures=1")
    document = make_ray_job("pipeline", "evicted", *overrides)
    for group in document["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        set_drain_time(group["template"]["spec"])
    job = RayJob(namespace, document)
    hosts: set[str] = set()

    def evict() -> None:
        pods = workloads.nodes_of_training_workers(job.running_cluster)
        hosts.update(pod.name for pod in pods)
        # A driver on a node that is taken away would end with it.
        next(pod for pod in pods if not pod.runs("jobs.pipeline")).begin_deletion()

    with RunMonitor(workloads.metrics_file(shared, "evicted")) as monitor:
        monitor.cause_at(29, evict)
        status = job.run()
    print(job.log[-5000:])
    assert status == "SUCCEEDED", job.log
    record_fault("evicted", monitor, 50 * workloads.STEPS_PER_EPOCH)
    assert job.statuses == ["SUCCEEDED"]
    # ZeRO-3 across nodes.
    assert len(hosts) == 2
    assert monitor.num_executed - 50 * workloads.STEPS_PER_EPOCH <= 2
    assert "registered: " in job.log
    # The cluster is deleted.
    assert [pod.name for pod in namespace.pods] == ["mlflow-0"]


def set_drain_time(pod: Document) -> None:
    """Set DRAIN_SECONDS and GRACE_SECONDS in a pod's spec."""
    pod["terminationGracePeriodSeconds"] = GRACE_SECONDS
    (container,) = pod["containers"]
    others = [entry for entry in container.get("env", []) if entry["name"] != DRAIN]
    container["env"] = [*others, {"name": DRAIN, "value": str(DRAIN_SECONDS)}]


@pytest.mark.slow
def test_a_job_whose_head_is_lost_goes_on_by_itself(
    namespace: Namespace, prepared: str, shared: Path, make_ray_job: Callable[..., Document]
) -> None:
    """Without a GCS that survives: the submitter or, at last, a new cluster runs the entrypoint again."""
    workloads.copy_run(shared, prepared, "retried")
    job = RayJob(namespace, make_ray_job("tune", "retried", "train.epochs=30"))

    def kill_head() -> None:
        assert job.running_cluster.head is not None
        job.running_cluster.head.kill()

    with RunMonitor(workloads.metrics_file(shared, "retried")) as monitor:
        monitor.cause_at(60, kill_head)
        status = job.run(timeout=400)
    print(job.log[-8000:], job.statuses)
    assert status == "SUCCEEDED", job.log
    record_fault("retried", monitor, 30 * workloads.STEPS_PER_EPOCH)
    assert monitor.num_executed - 30 * workloads.STEPS_PER_EPOCH <= workloads.TRAIN["checkpoint_every"]


@pytest.mark.slow
def test_a_job_that_fails_runs_again_on_a_new_cluster_and_resumes(
    namespace: Namespace, prepared: str, shared: Path, make_ray_job: Callable[..., Document]
) -> None:
    """`backoffLimit` of the RayJob; training itself may not restart here."""
    workloads.copy_run(shared, prepared, "failed")
    job = RayJob(namespace, make_ray_job("tune", "failed", "train.epochs=10", "train.max_failures=0"))
    clusters: list[str] = []

    def kill_worker() -> None:
        clusters.append(job.running_cluster.name)
        workloads.kill_training_worker(job.running_cluster)

    with RunMonitor(workloads.metrics_file(shared, "failed")) as monitor:
        monitor.cause_at(29, kill_worker)
        status = job.run()
    print(job.log[-5000:], job.statuses)
    assert status == "SUCCEEDED", job.log
    record_fault("failed", monitor, 10 * workloads.STEPS_PER_EPOCH)
    assert job.statuses == ["FAILED", "SUCCEEDED"]
    assert job.running_cluster.name not in clusters
    assert monitor.num_executed - 10 * workloads.STEPS_PER_EPOCH <= workloads.TRAIN["checkpoint_every"]
