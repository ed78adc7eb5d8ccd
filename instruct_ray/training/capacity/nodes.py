"""The cluster -> what its nodes have, and whether each sees the storage of the run."""

import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.capacity.placement import DATA_CPUS, Node, plan_placement, worker_resources

# A worker has to start on the node; a loaded one takes its time.
ANSWER_SECONDS = 120.0
# What one node writes, another may see later: NFS remembers for some seconds what was not there.
VISIBLE_SECONDS = 10.0
POLL_SECONDS = 0.5
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
DRIVER = "driver"


@dataclass(frozen=True)
class NodeReport:
    """What a task on a node found, or why there was none."""

    node: Node
    problem: str = ""
    """Why the node can't take part; empty if it can."""
    memory: int = 0
    """Bytes of memory that the node, or the container it is, may use."""
    gpu_memory: tuple[int, ...] = ()
    """Bytes of each GPU; empty if none, or if the node can't tell."""
    local_disk: int = 0
    """Free bytes where its workers put shards before they travel."""


def list_alive_nodes() -> list[Node]:
    """The nodes of the cluster that this process is connected to."""
    return [
        Node(
            each["NodeID"],
            each["NodeName"],
            float(each["Resources"].get("CPU", 0)),
            float(each["Resources"].get("GPU", 0)),
        )
        for each in ray.nodes()
        if each["Alive"]
    ]


def wait_for_placement(train: TrainConfig) -> tuple[list[Node], dict[str, int]]:
    """(nodes, workers on each), waiting up to `train.wait_for_nodes` seconds for an autoscaler to bring what is
    missing; no placement if it did not."""
    deadline = time.monotonic() + train.wait_for_nodes
    nodes = list_alive_nodes()
    if (placed := plan_placement(nodes, train)) or not train.wait_for_nodes:
        return nodes, placed
    request_resources(bundles=[*[worker_resources(train)] * train.min_workers, {"CPU": DATA_CPUS}])
    try:
        while not placed and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            nodes = list_alive_nodes()
            placed = plan_placement(nodes, train)
    finally:
        # The run's own workers ask from here on.
        request_resources(bundles=[])
    return nodes, placed


def probe_nodes(nodes: Sequence[Node], storage: Path) -> list[NodeReport]:
    """Ask every node at once; a token in `storage` is written and read on both sides.

    Raises:
        OSError: this process can't write to the storage.
    """
    folder = storage / f".doctor-{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    try:
        (folder / DRIVER).write_text(folder.name)
        answers = [
            _probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                str(folder), node.id
            )
            for node in nodes
        ]
        ray.wait(answers, num_returns=len(answers), timeout=ANSWER_SECONDS)
        return [_node_report(node, answer, folder) for node, answer in zip(nodes, answers, strict=True)]
    finally:
        shutil.rmtree(folder)


def _node_report(node: Node, answer: Any, folder: Path) -> NodeReport:
    try:
        seen, found = ray.get(answer, timeout=0)
    except GetTimeoutError:
        return NodeReport(node, f"did not answer within {ANSWER_SECONDS:.0f} s")
    except RayError as error:
        return NodeReport(node, f"failed: {str(error).strip().splitlines()[-1]}")
    if seen:
        return NodeReport(node, seen, **found)
    if _read(folder / node.id) != node.id:
        return NodeReport(
            node, f"writes to {folder.parent}, which is not the folder that this machine sees there", **found
        )
    return NodeReport(node, **found)


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _probe(folder: str, node_id: str) -> tuple[str, dict[str, Any]]:
    """(what is wrong with the storage, facts), as found on the node that runs this."""
    found = {"memory": node_memory(), "gpu_memory": gpu_memory(), "local_disk": shutil.disk_usage(Path.cwd()).free}
    place = Path(folder)
    if _read(place / DRIVER) != place.name:
        return (
            f"does not see what this machine writes to {place.parent}; it must be shared (NFS, EFS, …)",
            found,
        )
    try:
        (place / node_id).write_text(node_id)
    except OSError as error:
        return f"can't write to {place.parent}: {error.strerror}", found
    return "", found


def _read(path: Path) -> str:
    """A file's text, once it is there; empty if it never is."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not path.is_file():
        if time.monotonic() > deadline:
            return ""
        time.sleep(POLL_SECONDS)
    return path.read_text()


def node_memory() -> int:
    """Bytes of memory that this machine or container may use."""
    limits = [Path(name).read_text().strip() for name in CGROUP_LIMITS if Path(name).is_file()]
    total: int = psutil.virtual_memory().total
    return min([total, *(int(limit) for limit in limits if limit.isdigit())])


def gpu_memory() -> tuple[int, ...]:
    """Bytes of each NVIDIA GPU of this machine, whoever holds it; empty where no driver tells."""
    if not shutil.which("nvidia-smi"):
        return ()
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True)
    return tuple(int(line) * 2**20 for line in done.stdout.split()) if done.returncode == 0 else ()
