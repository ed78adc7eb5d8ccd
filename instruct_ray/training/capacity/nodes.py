"""driver: probes the nodes of the cluster, by one Ray task each: what they have, and whether they see the storage."""

import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from instruct_ray.base_model.cpu_precision import is_bf16_fast
from instruct_ray.config.train import TrainConfig
from instruct_ray.errors import last_line
from instruct_ray.training.capacity.placement import DATA_CPUS, Node, plan_placement, worker_resources
from instruct_ray.training.model.toolchain import missing_compilers

# Starting a process on a loaded node takes a while.
PROBE_TIMEOUT_SECONDS = 120.0
# A file may become visible on other nodes later: NFS caches for some seconds that it was not there.
VISIBLE_SECONDS = 10.0
POLL_SECONDS = 0.5
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# The file that this process writes; each node writes one that is named by its id.
DRIVER = "driver"


@dataclass(frozen=True)
class NodeReport:
    """What a task on a node found out."""

    node: Node
    problem: str | None = None
    """Why the node can't be used; None if it can."""
    memory: int = 0
    """Bytes of memory that the node, or the container it is, may use; 0 if it did not answer."""
    gpu_memory: tuple[int, ...] = ()
    """Bytes of each GPU; empty if there is none, or if its memory is unknown."""
    local_disk: int = 0
    """Free bytes where its workers write shards before they are moved to the storage."""
    missing_compilers: tuple[str, ...] = ()
    """Compilers that a worker needs and the node lacks: "C", "C++"."""
    is_bf16_fast: bool = True
    """Whether its CPU is fast in bf16."""


def list_alive_nodes() -> list[Node]:
    """The nodes of the cluster that this process is connected to."""
    return [
        Node(
            node["NodeID"],
            node["NodeName"],
            float(node["Resources"].get("CPU", 0)),
            float(node["Resources"].get("GPU", 0)),
            node["Labels"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def wait_for_placement(train: TrainConfig) -> tuple[list[Node], dict[str, int]]:
    """(nodes, number of workers on each), as `plan_placement` places them; no workers if they don't fit.

    Waits up to `train.wait_for_nodes` seconds for an autoscaler to add the missing nodes.
    """
    deadline = time.monotonic() + train.wait_for_nodes
    nodes = list_alive_nodes()
    if (placement := plan_placement(nodes, train)) or not train.wait_for_nodes:
        return nodes, placement
    request_resources(
        bundles=[*[worker_resources(train)] * train.min_workers, {"CPU": DATA_CPUS}],
        bundle_label_selectors=[*[train.label_selector] * train.min_workers, {}],
    )
    try:
        while not placement and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            nodes = list_alive_nodes()
            placement = plan_placement(nodes, train)
    finally:
        # From now on the run's own workers request the resources.
        request_resources(bundles=[])
    return nodes, placement


def probe_nodes(nodes: Sequence[Node], storage: Path, train: TrainConfig) -> list[NodeReport]:
    """Run a task on every node, in parallel, which reports its resources and tests the storage.

    This process and each node write a file to `storage`, and each reads the other's.

    Raises:
        OSError: this process can't write to the storage.
    """
    folder = storage / f".doctor-{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    try:
        (folder / DRIVER).write_text(folder.name)
        tasks = [
            _probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                folder, node, train
            )
            for node in nodes
        ]
        ray.wait(tasks, num_returns=len(tasks), timeout=PROBE_TIMEOUT_SECONDS)
        return [_collect_report(node, task, folder) for node, task in zip(nodes, tasks, strict=True)]
    finally:
        shutil.rmtree(folder)


def _collect_report(node: Node, task: Any, folder: Path) -> NodeReport:
    try:
        report: NodeReport = ray.get(task, timeout=0)
    except GetTimeoutError:
        return NodeReport(node, f"did not answer within {PROBE_TIMEOUT_SECONDS:.0f} s")
    except RayError as error:
        return NodeReport(node, f"failed: {last_line(error)}")
    if report.problem is None and _read_once_visible(folder / node.id) != node.id:
        return replace(report, problem=f"writes to another {folder.parent} than this machine; it must be shared")
    return report


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _probe(folder: Path, node: Node, train: TrainConfig) -> NodeReport:
    """Report the resources, compilers and CPU of the node that runs this task, and test the storage."""
    return NodeReport(
        node,
        problem=_test_storage(folder, node.id),
        memory=node_memory(),
        gpu_memory=gpu_memory(),
        local_disk=shutil.disk_usage(Path.cwd()).free,
        missing_compilers=tuple(missing_compilers(train)),
        is_bf16_fast=is_bf16_fast(),
    )


def _test_storage(folder: Path, node_id: str) -> str | None:
    if _read_once_visible(folder / DRIVER) != folder.name:
        return f"does not see what this machine writes to {folder.parent}; it must be shared (NFS, EFS, …)"
    try:
        (folder / node_id).write_text(node_id)
    except OSError as error:
        return f"can't write to {folder.parent}: {error.strerror}"
    return None


def _read_once_visible(path: Path) -> str | None:
    """Read a file as soon as it is visible; None if it does not appear."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not path.is_file():
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL_SECONDS)
    return path.read_text()


def node_memory() -> int:
    """Bytes of memory that this machine or container may use."""
    limits = [Path(name).read_text().strip() for name in CGROUP_LIMITS if Path(name).is_file()]
    total: int = psutil.virtual_memory().total
    return min([total, *(int(limit) for limit in limits if limit.isdigit())])


def gpu_memory() -> tuple[int, ...]:
    """Bytes of each NVIDIA GPU of this machine, used or free; empty if there is none, or if its memory is unknown."""
    if not shutil.which("nvidia-smi"):
        return ()
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    result = subprocess.run(command, capture_output=True, text=True)
    return tuple(int(line) * 2**20 for line in result.stdout.split()) if result.returncode == 0 else ()
