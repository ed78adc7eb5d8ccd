"""worker, all ranks: how many threads a worker computes with on the CPUs of its node."""

import ray
import ray.train
import torch

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.capacity.nodes import list_alive_nodes


def set_compute_threads(train: TrainConfig) -> None:
    """Set the number of threads of this worker, whatever OMP_NUM_THREADS it inherited."""
    node_id = ray.get_runtime_context().get_node_id()
    node_cpus = sum(node.cpus for node in list_alive_nodes() if node.id == node_id)
    torch.set_num_threads(num_compute_threads(train, node_cpus, ray.train.get_context().get_local_world_size()))


def num_compute_threads(train: TrainConfig, node_cpus: float, num_local_workers: int) -> int:
    """The number of threads of each of the workers on a node with this many CPUs.

    An offloaded optimizer computes while the GPUs of the node wait for it, so its workers share all CPUs.
    """
    if train.use_gpu and train.offload.optimizer:
        return max(train.cpus_per_worker, int(node_cpus) // num_local_workers)
    return train.cpus_per_worker
