"""A cluster of one CPU that waits for two workers to be placeable, without and with a node being added; prints JSON.

python -m tests.training.capacity.waiting_probe      (starts a cluster, so it needs a process of its own)
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
    """Print (seconds, workers placed) twice: where no node is added, and where one is."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    results = [_wait(SECONDS)]
    # Ray starts nodes in the main thread only, so the waiting is done in another.
    thread = threading.Thread(target=lambda: results.append(_wait(60)))
    thread.start()
    time.sleep(1)
    cluster.add_node(num_cpus=4)
    thread.join()
    print(json.dumps(results))
    ray.shutdown()
    cluster.shutdown()


def _wait(seconds: int) -> tuple[float, int]:
    started = time.monotonic()
    _, placement = wait_for_placement(TrainConfig(num_workers=2, wait_for_nodes=seconds))
    return time.monotonic() - started, sum(placement.values())


if __name__ == "__main__":
    main()
