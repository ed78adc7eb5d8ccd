"""How soon Ray Train notices that a worker is gone, and gives up on one that can't be placed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from instruct_ray.config.train import TrainConfig

# Seconds between two looks at the workers; Ray's default of 2 is lost at every failure.
HEALTH_CHECK_ENV = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
# An elastic run whose node went away waits so long for its old size before it counts what is left. Ray's default of 60
# is for nodes that have yet to start; an elastic group is only ever as large as the nodes that are there.
ELASTIC_ENV = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}


@contextmanager
def ray_train_timeouts(train: TrainConfig) -> Iterator[None]:
    """Ray Train reads these from the environment of the process that starts it; what is set there already holds."""
    wanted = HEALTH_CHECK_ENV | (ELASTIC_ENV if train.is_elastic else {})
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ |= added
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
