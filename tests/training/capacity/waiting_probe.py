"""A cluster of one CPU: how long are two workers waited for, with and without a node on its way? Prints JSON.

python -m tests.training.capacity.waiting_probe      (a cluster of its own, so a process of its own)
"""

import json
import threading
import time

import ray
from ray.cluster_utils import Cluster

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.capacity.nodes import wait_for_placement

SECONDS = 3


def main() -> None:
    """(seconds, workers placed) where nothing comes, and where a node does."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    found = [_wait(SECONDS)]
    # Nodes are started by the main thread only.
    waiting = threading.Thread(target=lambda: found.append(_wait(60)))
    waiting.start()
    time.sleep(1)
    cluster.add_node(num_cpus=4)
    waiting.join()
    print(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


def _wait(seconds: int) -> tuple[float, int]:
    began = time.monotonic()
    _, placed = wait_for_placement(TrainConfig(num_workers=2, wait_for_nodes=seconds))
    return time.monotonic() - began, sum(placed.values())


if __name__ == "__main__":
    main()
