"""driver: how soon Ray Train notices a dead worker, and how long it waits for a worker that can't be placed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from instruct_ray.config.train import TrainConfig

# Seconds between two health checks of the workers. Ray's default is 2, and every failure takes that much longer.
HEALTH_CHECK_ENV = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
# How long an elastic run that lost a node waits for its former number of workers, before it starts with those that fit.
# Ray's default of 60 is meant for nodes that are still starting; an elastic run uses the nodes that are there.
ELASTIC_ENV = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}


@contextmanager
def ray_train_timeouts(train: TrainConfig) -> Iterator[None]:
    """Set the environment variables from which Ray Train reads its timeouts, inside the block.

    Ray Train reads them in the process that starts it. Variables that are already set are kept.
    """
    wanted = HEALTH_CHECK_ENV | (ELASTIC_ENV if train.is_elastic else {})
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ |= added
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
