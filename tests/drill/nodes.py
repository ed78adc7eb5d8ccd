"""Nodes that go away under the workers, on a cluster of raylets."""

import threading
import time
from collections.abc import Callable
from unittest.mock import patch

import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.run.folder import RunFolder
from tests.drill.lab import NODE, Figures, Lab
from tests.drill.watch import lines_of

# Each node has room for one worker.
WIDE = {"cpus_per_worker": 2}
DRAIN_SECONDS = 15.0


def node_lost_with_a_spare(lab: Lab) -> Figures:
    """A worker's node is gone and a third one is there."""
    with lab.nodes(3) as cluster:
        whole = lab.whole(**WIDE)
        config = lab.start("spare", **WIDE)
        with lab.watch(config) as watch:
            watch.at(15, lambda: remove_a_workers_node(cluster))
            lab.run(config)
        return lab.compared(config, whole, watch)


def node_lost_without_a_spare(lab: Lab) -> Figures:
    """A worker's node is gone and no other is there: the run says what it waits for until one comes."""
    with lab.nodes(2) as cluster:
        whole = lab.whole(**WIDE)
        config = lab.start("no-spare", **WIDE)
        lab.log.clear()
        is_over = threading.Event()
        try:
            with lab.watch(config) as watch:
                watch.at(15, lambda: remove_a_workers_node(cluster))
                in_background(lambda: add_a_node_when_asked(cluster, lab, is_over))
                lab.run(config)
        finally:
            is_over.set()
        found = lab.compared(config, whole, watch)
        found.says = next(line for line in lab.log if line.startswith("waiting for nodes"))
        return found


def elastic(lab: Lab) -> Figures:
    """`num_workers: [1, 2]`, a worker's node is gone and no other is there: one rank goes on with the rows that are
    left."""
    with lab.nodes(2) as cluster:
        whole = lab.whole(**WIDE, precision="fp32")
        config = lab.start("elastic", **WIDE, precision="fp32", num_workers=[1, 2])
        with lab.watch(config) as watch:
            watch.at(15, lambda: remove_a_workers_node(cluster))
            lab.run(config)
        found = lab.figures(config, watch)
    lines, expected = (lines_of(RunFolder.from_config(each).metrics_file) for each in (config, whole))
    assert [line["examples"] for line in lines] == [line["examples"] for line in expected]
    assert [line["num_trained"] for line in lines] == [line["num_trained"] for line in expected]
    assert (
        sum(line["examples"] for line in lines)
        == config.train.epochs * find_packs(RunFolder.from_config(config)).num_examples
    )
    difference = max(abs(line["loss"] / other["loss"] - 1) for line, other in zip(lines, expected, strict=True))
    assert difference < 1e-4, difference
    assert "with another number of workers" in RunFolder.from_config(config).path.joinpath("notices.jsonl").read_text()
    found.says = f"2 ranks, then 1; every row once an epoch; losses within {difference:.0e} of the uninterrupted run"
    return found


def node_drained(lab: Lab) -> Figures:
    """A node is taken away with notice: a checkpoint is made for it, and max_failures=0 is not touched."""
    with lab.nodes(3) as cluster:
        # No checkpoint but those made because of the notice.
        train = {**WIDE, "epochs": 150, "checkpoint_every": 10**6}
        whole = lab.whole(**train)
        config = lab.start("drained", **train, max_failures=0)
        with lab.watch(config) as watch:
            watch.at(15, lambda: in_background(lambda: drain_a_workers_node(cluster)))
            lab.run(config)
        found = lab.compared(config, whole, watch)
        found.seconds_to_next_step = []
    return found


def remove_a_workers_node(cluster: Cluster) -> None:
    """As a machine that is switched off."""
    cluster.remove_node(a_workers_node(cluster), allow_graceful=False)


def drain_a_workers_node(cluster: Cluster) -> None:
    """As a spot machine: notice, then the end."""
    node = a_workers_node(cluster)
    gcs = ray._raylet.GcsClient(address=cluster.address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = gcs.drain_node(node.node_id, reason, "drill", int((time.time() + DRAIN_SECONDS) * 1000))
    assert accepted, why
    # Ray takes the workers down at the deadline.
    time.sleep(DRAIN_SECONDS + 2)
    cluster.remove_node(node, allow_graceful=False)


def a_workers_node(cluster: Cluster) -> ray._private.node.Node:
    """A node that holds one; the head has no room for any."""
    used = [node for node in cluster.worker_nodes if free_cpus(node.node_id) < 1]
    return used[-1]


def free_cpus(node_id: str) -> float:
    return float(ray._private.state.available_resources_per_node().get(node_id, {}).get("CPU", 0.0))


def add_a_node_when_asked(cluster: Cluster, lab: Lab, is_over: threading.Event) -> None:
    while not any(line.startswith("waiting for nodes") for line in lab.log):
        time.sleep(0.1)
    # Ray wants to handle SIGTERM, which only a main thread may; the node goes with the cluster.
    with patch("ray._private.utils.set_sigterm_handler"):
        cluster.add_node(**NODE)
    # Ray's processes end with the thread that started them.
    is_over.wait()


def in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()
