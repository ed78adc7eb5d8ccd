"""Which workers fit where, without a cluster."""

import pytest

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.capacity.placement import Node, describe_shortage, plan_placement, worker_resources


def nodes(*sizes: tuple[float, float]) -> list[Node]:
    return [Node(f"id-{number}", f"node-{number}", cpus, gpus) for number, (cpus, gpus) in enumerate(sizes)]


def train(**values: object) -> TrainConfig:
    return TrainConfig.model_validate(values)


@pytest.mark.parametrize(
    ("sizes", "values", "placed"),
    [
        # Ray Data needs one beside them: this once hung for ever.
        ([(2, 0)], {"num_workers": 2}, {}),
        ([(3, 0)], {"num_workers": 2}, {"id-0": 2}),
        ([(2, 0), (1, 0)], {"num_workers": 2}, {"id-0": 2}),
        # As few nodes as can be, the largest first.
        ([(2, 0), (8, 0)], {"num_workers": 4}, {"id-1": 4}),
        ([(2, 0), (3, 0)], {"num_workers": 4}, {"id-1": 3, "id-0": 1}),
        # Together they have the CPUs, none of them has enough for one worker.
        ([(3, 0), (3, 0), (3, 0)], {"num_workers": 1, "cpus_per_worker": 4}, {}),
        ([(16, 1), (16, 0)], {"num_workers": 2, "use_gpu": True}, {}),
        ([(16, 1), (16, 1)], {"num_workers": 2, "use_gpu": True}, {"id-0": 1, "id-1": 1}),
        ([(2, 8), (8, 0)], {"num_workers": 4, "use_gpu": True}, {}),
        ([], {"num_workers": 1}, {}),
        # As few as may be of an elastic run; the task that validates wants a place too.
        ([(3, 0)], {"num_workers": (1, 8)}, {"id-0": 1}),
        ([(3, 0)], {"num_workers": 2, "validation": {}}, {}),
        ([(4, 0)], {"num_workers": 2, "validation": {}}, {"id-0": 2}),
    ],
)
def test_workers_are_placed_or_not(
    sizes: list[tuple[float, float]], values: dict[str, object], placed: dict[str, int]
) -> None:
    assert plan_placement(nodes(*sizes), train(**values)) == placed


@pytest.mark.parametrize(
    ("sizes", "values", "advice"),
    [
        ([(2, 0)], {"num_workers": 2}, "take train.num_workers=1"),
        ([(4, 2)], {"num_workers": 8, "use_gpu": True}, "4 CPUs and 2 GPUs; take train.num_workers=2"),
        ([(3, 0), (3, 0)], {"cpus_per_worker": 4}, "take fewer train.cpus_per_worker"),
        ([(1, 0)], {}, "fewer train.cpus_per_worker, or add nodes (see train.wait_for_nodes)"),
    ],
)
def test_what_would_fit_is_said(sizes: list[tuple[float, float]], values: dict[str, object], advice: str) -> None:
    chosen = train(**values)
    assert advice in describe_shortage(nodes(*sizes), chosen)
    if "num_workers=" in advice:
        num = int(advice.rpartition("=")[2])
        assert plan_placement(nodes(*sizes), chosen.model_copy(update={"num_workers": num}))
        assert not plan_placement(nodes(*sizes), chosen.model_copy(update={"num_workers": num + 1}))


def test_a_worker_holds_a_gpu_if_asked() -> None:
    assert worker_resources(train(cpus_per_worker=3, use_gpu=True)) == {"CPU": 3, "GPU": 1}
    assert worker_resources(train()) == {"CPU": 1}
