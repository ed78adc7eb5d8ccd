"""How many threads a worker computes with."""

import pytest

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.worker.compute_threads import num_compute_threads


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 1),
        ({"cpus_per_worker": 3}, 3),
        # The workers of a node without GPUs compute all the time, so an offloaded optimizer gets no more.
        ({"cpus_per_worker": 3, "offload": {"optimizer": True}}, 3),
        ({"use_gpu": True}, 1),
        ({"use_gpu": True, "offload": {"optimizer": True}}, 8),
        ({"use_gpu": True, "offload": {"optimizer": True}, "cpus_per_worker": 10}, 10),
    ],
)
def test_offloaded_optimizers_of_a_node_share_its_cpus(values: dict[str, object], expected: int) -> None:
    train = TrainConfig.model_validate({"zero_stage": 1} | values)
    assert num_compute_threads(train, node_cpus=32, num_local_workers=4) == expected
