"""Nodes that are lost under the workers, on a cluster of several nodes on this machine."""

import threading
import time
from collections.abc import Callable
from unittest.mock import patch

import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.run.folder import RunFolder
from tests.drill.harness import NODE, CaseResult, DrillHarness
from tests.drill.monitor import read_metrics

# Each node has room for one worker of this size.
ONE_WORKER_PER_NODE = {"cpus_per_worker": 2}
DRAIN_SECONDS = 15.0


def lose_node_with_spare(harness: DrillHarness) -> CaseResult:
    """The node of a worker is lost, and a third node is free."""
    with harness.node_cluster(3) as cluster:
        uninterrupted = harness.train_uninterrupted(**ONE_WORKER_PER_NODE)
        config = harness.prepare_run("spare", **ONE_WORKER_PER_NODE)
        with harness.monitor(config) as monitor:
            monitor.cause_at(15, lambda: remove_node_of_a_worker(cluster))
            harness.train(config)
        return harness.compare(config, uninterrupted, monitor)


def lose_node_without_spare(harness: DrillHarness) -> CaseResult:
    """The node of a worker is lost, and no node is free: the run reports what it waits for until a node joins."""
    with harness.node_cluster(2) as cluster:
        uninterrupted = harness.train_uninterrupted(**ONE_WORKER_PER_NODE)
        config = harness.prepare_run("no-spare", **ONE_WORKER_PER_NODE)
        harness.status_messages.clear()
        has_ended = threading.Event()
        try:
            with harness.monitor(config) as monitor:
                monitor.cause_at(15, lambda: remove_node_of_a_worker(cluster))
                start_thread(lambda: add_node_once_the_run_waits(cluster, harness, has_ended))
                harness.train(config)
        finally:
            has_ended.set()
        result = harness.compare(config, uninterrupted, monitor)
        result.note = next(message for message in harness.status_messages if message.startswith("waiting for nodes"))
        return result


def lose_node_of_elastic_run(harness: DrillHarness) -> CaseResult:
    """The node of a worker is lost, no node is free, and `num_workers: [1, 2]`: the run resumes with one worker."""
    with harness.node_cluster(2) as cluster:
        uninterrupted = harness.train_uninterrupted(**ONE_WORKER_PER_NODE, precision="fp32")
        config = harness.prepare_run("elastic", **ONE_WORKER_PER_NODE, precision="fp32", num_workers=[1, 2])
        with harness.monitor(config) as monitor:
            monitor.cause_at(15, lambda: remove_node_of_a_worker(cluster))
            harness.train(config)
        result = harness.measure(config, monitor)
    folder = RunFolder.from_config(config)
    metrics = read_metrics(folder.metrics_file)
    expected_metrics = read_metrics(RunFolder.from_config(uninterrupted).metrics_file)
    for key in ("examples", "num_trained"):
        assert [step[key] for step in metrics] == [step[key] for step in expected_metrics]
    assert sum(step["examples"] for step in metrics) == config.train.epochs * find_packs(folder).num_examples
    difference = max(
        abs(step["loss"] / expected["loss"] - 1) for step, expected in zip(metrics, expected_metrics, strict=True)
    )
    assert difference < 1e-4, difference
    assert "with another number of workers" in folder.events_file.read_text()
    result.note = f"2 ranks, then 1; every row once per epoch; losses within {difference:.0e} of the uninterrupted run"
    return result


def drain_node(harness: DrillHarness) -> CaseResult:
    """The node of a worker is drained with notice: a checkpoint is saved first, and `max_failures=0` suffices."""
    with harness.node_cluster(3) as cluster:
        # The only checkpoints are the one before the drain and the last one.
        train = {**ONE_WORKER_PER_NODE, "epochs": 150, "checkpoint_every": 10**6}
        uninterrupted = harness.train_uninterrupted(**train)
        config = harness.prepare_run("drained", **train, max_failures=0)
        with harness.monitor(config) as monitor:
            monitor.cause_at(15, lambda: start_thread(lambda: drain_node_of_a_worker(cluster)))
            harness.train(config)
        result = harness.compare(config, uninterrupted, monitor)
        result.seconds_to_next_step = []
    return result


def remove_node_of_a_worker(cluster: Cluster) -> None:
    """Remove a node without notice, as if its machine were switched off."""
    cluster.remove_node(find_node_of_a_worker(cluster), allow_graceful=False)


def drain_node_of_a_worker(cluster: Cluster) -> None:
    """Remove a node some time after a notice, like a spot machine."""
    node = find_node_of_a_worker(cluster)
    gcs = ray._raylet.GcsClient(address=cluster.address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    is_accepted, message = gcs.drain_node(node.node_id, reason, "drill", int((time.time() + DRAIN_SECONDS) * 1000))
    assert is_accepted, message
    # Ray stops the workers at the deadline.
    time.sleep(DRAIN_SECONDS + 2)
    cluster.remove_node(node, allow_graceful=False)


def find_node_of_a_worker(cluster: Cluster) -> ray._private.node.Node:
    """A node that holds a worker. The head has no room for one."""
    used_nodes = [node for node in cluster.worker_nodes if count_free_cpus(node.node_id) < 1]
    return used_nodes[-1]


def count_free_cpus(node_id: str) -> float:
    return float(ray._private.state.available_resources_per_node().get(node_id, {}).get("CPU", 0.0))


def add_node_once_the_run_waits(cluster: Cluster, harness: DrillHarness, has_ended: threading.Event) -> None:
    while not any(message.startswith("waiting for nodes") for message in harness.status_messages):
        time.sleep(0.1)
    # Ray sets a SIGTERM handler, which only the main thread may do. The node is removed with the cluster.
    with patch("ray._private.utils.set_sigterm_handler"):
        cluster.add_node(**NODE)
    # The processes of the node end together with the thread that started them.
    has_ended.wait()


def start_thread(function: Callable[[], None]) -> None:
    threading.Thread(target=function, daemon=True).start()
