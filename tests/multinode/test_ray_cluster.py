"""The RayCluster of `cluster/` over three hosts: jobs submitted over HTTP, and hosts that are lost under a run."""

import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.drill.monitor import RunMonitor
from tests.multinode import workloads
from tests.multinode.documents import find_document, render, shrink_cluster
from tests.multinode.kuberay import RayCluster
from tests.multinode.mlflow_deployment import MlflowDeployment
from tests.multinode.pods import Namespace, Pod
from tests.multinode.ray_jobs import SubmittedJob
from tests.multinode.report import record_fault

pytestmark = [pytest.mark.multinode, pytest.mark.timeout(900)]

# (name, epochs, step of the fault, fault, overrides) -> what the monitor of the run saw.
Tune = Callable[..., RunMonitor]
# Ray counts a node as dead when it has not answered for this long, see RAY_health_check_*.
DEAD_SECONDS = 120


@pytest.fixture(scope="module")
def cluster(namespace: Namespace, mlflow: MlflowDeployment) -> Iterator[RayCluster]:
    """The cluster of all tests of this module; its GCS survives the head."""
    spec = shrink_cluster(find_document(render("overlays/cpu", "head-recovery"), "RayCluster")["spec"])
    cluster = RayCluster(namespace, "instruct-ray", spec)
    cluster.start()
    yield cluster
    cluster.delete()


@pytest.fixture
def tune(cluster: RayCluster, namespace: Namespace, shared: Path, prepared: str) -> Tune:
    """Trains a copy of the prepared run in a submitted job, which must succeed, and causes a fault at a step."""

    def tune(
        name: str, epochs: int, fault_step: int, fault: Callable[[], None], *overrides: str, on_worker: bool = False
    ) -> RunMonitor:
        cluster.wait_until(lambda: len(cluster.alive_nodes()) == 3, 120, "3 nodes did not join")
        workloads.copy_run(shared, prepared, name)
        command = workloads.job_command("tune", name, f"train.epochs={epochs}", *overrides)
        # As `instruct-ray submit` does.
        fields = {"entrypointResources": '{"driver": 1}'} if on_worker else {}
        with RunMonitor(workloads.metrics_file(shared, name)) as monitor:
            monitor.cause_at(fault_step, fault)
            job = SubmittedJob(namespace, cluster, name, command, **fields)
            status = job.wait(timeout=400)
        events = shared / "runs" / name / "events.jsonl"
        print(job.log[-3000:], events.read_text() if events.exists() else "no events")
        assert status == "SUCCEEDED", f"{job.log[-6000:]}\n{cluster.describe()}"
        record_fault(name, monitor, epochs * workloads.STEPS_PER_EPOCH)
        return monitor

    return tune


def num_redone(monitor: RunMonitor, epochs: int) -> int:
    return monitor.num_executed - epochs * workloads.STEPS_PER_EPOCH


def test_a_job_needs_the_token(cluster: RayCluster) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        cluster.request("/api/jobs/", token="wrong")
    assert refused.value.code in (401, 403)
    assert cluster.request("/api/jobs/") is not None


def test_a_killed_head_costs_no_step_of_a_driver_on_a_worker(cluster: RayCluster, tune: Tune) -> None:
    def kill() -> None:
        assert cluster.head is not None
        cluster.head.kill()

    overrides = ("train.checkpoint_every=1000", "train.max_failures=0")
    monitor = tune("head-killed", 40, 30, kill, *overrides, on_worker=True)
    assert num_redone(monitor, 40) == 0


@pytest.mark.slow
def test_a_killed_worker_node_is_replaced_and_the_run_goes_on(cluster: RayCluster, tune: Tune) -> None:
    monitor = tune("killed", 12, 29, lambda: workloads.nodes_of_training_workers(cluster)[-1].kill())
    assert num_redone(monitor, 12) <= workloads.TRAIN["checkpoint_every"]


@pytest.mark.slow
def test_a_short_network_cut_costs_no_step(cluster: RayCluster, tune: Tune) -> None:
    def cut() -> None:
        host = workloads.nodes_of_training_workers(cluster)[-1].host
        host.cut()
        time.sleep(10)
        host.heal()

    monitor = tune("short-cut", 12, 29, cut, "train.max_failures=0")
    assert num_redone(monitor, 12) == 0


@pytest.mark.slow
def test_a_node_that_was_cut_off_for_long_comes_back(cluster: RayCluster, tune: Tune) -> None:
    def cut() -> None:
        pod = workloads.nodes_of_training_workers(cluster)[-1]
        pod.host.cut()
        threading.Thread(target=heal_once_dead, args=(cluster, pod), daemon=True).start()

    monitor = tune("long-cut", 12, 29, cut)
    assert num_redone(monitor, 12) <= workloads.TRAIN["checkpoint_every"]


def heal_once_dead(cluster: RayCluster, pod: Pod) -> None:
    """Connect a pod again when its node counts as dead, which ends its raylet: the container is started again."""
    deadline = time.monotonic() + DEAD_SECONDS
    while len(cluster.alive_nodes()) > 2 and time.monotonic() < deadline:
        time.sleep(1)
    pod.host.heal()


@pytest.mark.slow
def test_a_storage_that_is_not_shared_is_refused_before_training(
    cluster: RayCluster, namespace: Namespace, shared: Path, prepared: str
) -> None:
    """The last test of this module: one of its pods gets another volume."""
    (group,) = cluster.spec["workerGroupSpecs"]
    (volume,) = [v for v in group["template"]["spec"]["volumes"] if "persistentVolumeClaim" in v]
    volume["persistentVolumeClaim"]["claimName"] = "another"
    (namespace.claim_folder("another") / "runs").mkdir(mode=0o777)
    lost = cluster.workers[-1]
    lost.kill()
    cluster.wait_until(lambda: has_replaced(cluster, lost), 180, "the node was not replaced")
    workloads.copy_run(shared, prepared, "not-shared")
    job = SubmittedJob(namespace, cluster, "not-shared", workloads.job_command("tune", "not-shared"))
    assert job.wait() == "FAILED"
    assert "it must be shared" in job.log
    assert "exit code 2" in job.log
    assert not workloads.metrics_file(shared, "not-shared").exists()


def has_replaced(cluster: RayCluster, lost: Pod) -> bool:
    """Whether another node has joined, and the lost one counts as dead."""
    addresses = [node["node_ip"] for node in cluster.alive_nodes()]
    return len(addresses) == 3 and lost.host.address not in addresses
