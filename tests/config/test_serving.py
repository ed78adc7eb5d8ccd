"""Options of the endpoint that exclude each other."""

from typing import Any

import pytest

from instruct_ray.config.serving import ServingConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_replicas": 3, "autoscaling": {"max_replicas": 2}}, "num_replicas=3 is not between"),
        ({"autoscaling": {"min_replicas": 3, "max_replicas": 2}}, "min_replicas=3 is more than max_replicas=2"),
        (
            {"engine": "vllm", "num_gpus": 1, "also_serve": ("previous",)},
            r"gpu_memory_utilization=0.45 is too much for 3 models .* set at most 0\.33",
        ),
        ({"engine": "vllm", "num_gpus": 1, "gpu_memory_utilization": 0.9}, r"for 2 models .* set at most 0\.50"),
        ({"feedback_file": "/x.jsonl", "playground": False}, "set playground: true"),
    ],
)
def test_options_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServingConfig(**values)


def test_one_model_may_take_the_whole_gpu() -> None:
    serving = ServingConfig(engine="vllm", num_gpus=1, gpu_memory_utilization=0.9, follow_seconds=None)
    assert serving.max_replicas == 1
    assert (serving.num_models, serving.num_models_that_fit) == (1, 1)
    assert (ServingConfig(gpu_memory_utilization=0.1).num_models_that_fit, ServingConfig().num_models) == (10, 2)
    assert ServingConfig(autoscaling={"max_replicas": 4}).max_replicas == 4
