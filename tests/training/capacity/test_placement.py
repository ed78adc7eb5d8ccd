"""Which workers fit on which nodes, without a cluster."""

import pytest

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.capacity.placement import Node, describe_shortage, plan_placement, worker_resources


def make_nodes(*sizes: tuple[float, float]) -> list[Node]:
    return [Node(f"id-{number}", f"node-{number}", cpus, gpus) for number, (cpus, gpus) in enumerate(sizes)]


def make_train_config(**values: object) -> TrainConfig:
    return TrainConfig.model_validate(values)


@pytest.mark.parametrize(
    ("sizes", "values", "placement"),
    [
        # Ray Data needs a CPU besides the workers; without this rule the run hung.
        ([(2, 0)], {"num_workers": 2}, {}),
        ([(3, 0)], {"num_workers": 2}, {"id-0": 2}),
        ([(2, 0), (1, 0)], {"num_workers": 2}, {"id-0": 2}),
        # As few nodes as possible, the largest first.
        ([(2, 0), (8, 0)], {"num_workers": 4}, {"id-1": 4}),
        ([(2, 0), (3, 0)], {"num_workers": 4}, {"id-1": 3, "id-0": 1}),
        # The nodes have enough CPUs together, but none has enough for a worker.
        ([(3, 0), (3, 0), (3, 0)], {"num_workers": 1, "cpus_per_worker": 4}, {}),
        ([(16, 1), (16, 0)], {"num_workers": 2, "use_gpu": True}, {}),
        ([(16, 1), (16, 1)], {"num_workers": 2, "use_gpu": True}, {"id-0": 1, "id-1": 1}),
        ([(2, 8), (8, 0)], {"num_workers": 4, "use_gpu": True}, {}),
        ([], {"num_workers": 1}, {}),
        # The fewest workers of an elastic run; the validation task needs a CPU too.
        ([(3, 0)], {"num_workers": (1, 8)}, {"id-0": 1}),
        ([(3, 0)], {"num_workers": 2, "validation": {}}, {}),
        ([(4, 0)], {"num_workers": 2, "validation": {}}, {"id-0": 2}),
    ],
)
def test_workers_are_placed_or_not(
    sizes: list[tuple[float, float]], values: dict[str, object], placement: dict[str, int]
) -> None:
    assert plan_placement(make_nodes(*sizes), make_train_config(**values)) == placement


@pytest.mark.parametrize(
    ("sizes", "values", "advice"),
    [
        ([(2, 0)], {"num_workers": 2}, "set train.num_workers=1"),
        ([(4, 2)], {"num_workers": 8, "use_gpu": True}, "4 CPUs and 2 GPUs; set train.num_workers=2"),
        ([(3, 0), (3, 0)], {"cpus_per_worker": 4}, "lower train.cpus_per_worker"),
        ([(1, 0)], {}, "lower train.cpus_per_worker, or add nodes (see train.wait_for_nodes)"),
    ],
)
def test_shortage_message_suggests_what_fits(
    sizes: list[tuple[float, float]], values: dict[str, object], advice: str
) -> None:
    train = make_train_config(**values)
    assert advice in describe_shortage(make_nodes(*sizes), train)
    if "num_workers=" in advice:
        num_workers = int(advice.rpartition("=")[2])
        assert plan_placement(make_nodes(*sizes), train.model_copy(update={"num_workers": num_workers}))
        assert not plan_placement(make_nodes(*sizes), train.model_copy(update={"num_workers": num_workers + 1}))


def test_workers_go_to_nodes_with_the_labels() -> None:
    nodes = [Node("id-0", "spot", 8, 0, {"market": "spot"}), Node("id-1", "other", 4, 0, {"market": "on-demand"})]
    train = make_train_config(num_workers=2, label_selector={"market": "on-demand"})
    assert plan_placement(nodes, train) == {"id-1": 2}
    train = make_train_config(num_workers=2, label_selector={"market": "reserved"})
    assert not plan_placement(nodes, train)
    message = describe_shortage(nodes, train)
    assert "2 worker(s) of 1 CPU on nodes with market=reserved plus" in message
    assert "change train.label_selector, which no node matches" in message


def test_run_for_gpus_on_nodes_without_any_is_told_so() -> None:
    assert "set train.use_gpu=false" in describe_shortage(make_nodes((8, 0)), make_train_config(use_gpu=True))


def test_worker_reserves_a_gpu_if_configured() -> None:
    assert worker_resources(make_train_config(cpus_per_worker=3, use_gpu=True)) == {"CPU": 3, "GPU": 1}
    assert worker_resources(make_train_config()) == {"CPU": 1}
