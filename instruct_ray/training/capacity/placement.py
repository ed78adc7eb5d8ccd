"""pure: plans which nodes can hold the workers of a run, and explains what is missing if they don't fit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from instruct_ray.config.label_selector import describe_selector, matches
from instruct_ray.config.train import TrainConfig

# For Ray Data, besides the workers: without a free CPU it never delivers a pack, and the run hangs.
DATA_CPUS = 1


@dataclass(frozen=True)
class Node:
    """A node that is alive, with all its resources in Ray, used or free."""

    id: str
    name: str
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)


def worker_resources(train: TrainConfig) -> dict[str, float]:
    """The Ray resources of one worker."""
    return {"CPU": float(train.cpus_per_worker)} | ({"GPU": 1.0} if train.use_gpu else {})


def required_cpus(train: TrainConfig) -> int:
    """CPUs that a run needs in all, with as few workers as it may have."""
    validation = 0 if train.validation is None else math.ceil(train.validation.num_cpus)
    return train.min_workers * train.cpus_per_worker + DATA_CPUS + validation


def plan_placement(nodes: Sequence[Node], train: TrainConfig) -> dict[str, int]:
    """The number of workers on each node, by node id, with as few workers as the run may have.

    Like Ray, it uses as few nodes as possible. Empty if the workers don't fit.
    """
    num_left, placement = train.min_workers, {}
    for node in sorted(nodes, key=lambda node: -_num_workers(node, train)):
        if num_workers := min(num_left, _num_workers(node, train)):
            placement[node.id] = num_workers
            num_left -= num_workers
    return {} if num_left or sum(node.cpus for node in nodes) < required_cpus(train) else placement


def describe_shortage(nodes: Sequence[Node], train: TrainConfig) -> str:
    """Explain why workers can't be placed: what they need, what there is, and what would help."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    other_cpus = required_cpus(train) - train.min_workers * train.cpus_per_worker
    other_tasks = "Ray Data" if train.validation is None else "Ray Data and validation"
    worker = f"{train.cpus_per_worker} CPU{' and 1 GPU' if train.use_gpu else ''}"
    if train.label_selector:
        worker += f" on nodes with {describe_selector(train.label_selector)}"
    needed = f"{train.min_workers} worker(s) of {worker} plus {other_cpus} CPU for {other_tasks}"
    available = f"{len(nodes)} node(s) with {cpus:g} CPUs and {gpus:g} GPUs"
    num_fitting = sum(_num_workers(node, train) for node in nodes)
    while num_fitting and cpus < num_fitting * train.cpus_per_worker + other_cpus:
        num_fitting -= 1
    advice = f"set train.num_workers={num_fitting}" if num_fitting else _advise_for_none(nodes, train)
    return f"{needed} can't be placed on {available}; {advice}, or add nodes (see train.wait_for_nodes)"


def _advise_for_none(nodes: Sequence[Node], train: TrainConfig) -> str:
    """What to change where not even one worker fits."""
    if nodes and not any(matches(node.labels, train.label_selector) for node in nodes):
        return "change train.label_selector, which no node matches"
    if train.use_gpu and not any(node.gpus for node in nodes):
        return "set train.use_gpu=false"
    return "lower train.cpus_per_worker"


def _num_workers(node: Node, train: TrainConfig) -> int:
    """Workers that fit on a node."""
    if not matches(node.labels, train.label_selector):
        return 0
    num_by_cpus = int(node.cpus // train.cpus_per_worker)
    return min(num_by_cpus, int(node.gpus)) if train.use_gpu else num_by_cpus
