"""Workers and nodes -> which node holds how many, or why they can't be placed. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from instruct_ray.config.train import TrainConfig

# For Ray Data beside the workers: without a free CPU it never delivers a pack, and the run waits for ever.
DATA_CPUS = 1


@dataclass(frozen=True)
class Node:
    """An alive node and all that Ray counts on it, taken or not."""

    id: str
    name: str
    cpus: float
    gpus: float


def worker_resources(train: TrainConfig) -> dict[str, float]:
    """The resources of one worker."""
    return {"CPU": float(train.cpus_per_worker)} | ({"GPU": 1.0} if train.use_gpu else {})


def required_cpus(train: TrainConfig) -> int:
    """CPUs that a run of the fewest workers takes in all."""
    validation = 0 if train.validation is None else math.ceil(train.validation.num_cpus)
    return train.min_workers * train.cpus_per_worker + DATA_CPUS + validation


def plan_placement(nodes: Sequence[Node], train: TrainConfig) -> dict[str, int]:
    """The fewest workers of a run on each node, by its id, on as few nodes as can be, as Ray does; empty if they don't
    fit."""
    left, placed = train.min_workers, {}
    for node in sorted(nodes, key=lambda node: -_capacity(node, train)):
        if num := min(left, _capacity(node, train)):
            placed[node.id] = num
            left -= num
    return {} if left or sum(node.cpus for node in nodes) < required_cpus(train) else placed


def describe_shortage(nodes: Sequence[Node], train: TrainConfig) -> str:
    """What is needed, what is there and what would help, for workers that can't be placed."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    workers = train.min_workers * train.cpus_per_worker
    others = "Ray Data" if train.validation is None else "Ray Data and validation"
    each = f"{train.cpus_per_worker} CPU{' and 1 GPU' if train.use_gpu else ''}"
    there = f"{len(nodes)} node(s) with {cpus:g} CPUs and {gpus:g} GPUs"
    needed = f"{train.min_workers} worker(s) of {each} beside {required_cpus(train) - workers} CPU for {others}"
    most = sum(_capacity(node, train) for node in nodes)
    while most and cpus < most * train.cpus_per_worker + required_cpus(train) - workers:
        most -= 1
    advice = f"train.num_workers={most}" if most else "fewer train.cpus_per_worker"
    return f"{needed} can't be placed on {there}; take {advice}, or add nodes (see train.wait_for_nodes)"


def _capacity(node: Node, train: TrainConfig) -> int:
    by_cpus = int(node.cpus // train.cpus_per_worker)
    return min(by_cpus, int(node.gpus)) if train.use_gpu else by_cpus
