"""Bytes by stage, offload and adapter, by the published formulas."""

import pytest

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.capacity.memory import (
    BUCKET_ELEMENTS,
    MAX_LIVE_ELEMENTS,
    ModelSize,
    checkpoint_bytes,
    estimate_memory,
    format_gib,
    model_bytes,
)

SHAPES = ModelSize(num_parameters=8_000_000_000, num_trained=8_000_000_000, activation_bytes=5_000_000_000)
LORA = ModelSize(num_parameters=8_000_000_000, num_trained=40_000_000, activation_bytes=5_000_000_000)


def train(**values: object) -> TrainConfig:
    return TrainConfig.model_validate({"use_gpu": True} | values)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    # Of 8 ranks, in GB: Rajbhandari et al. 2020, figure 1, with 8 for 64 ranks and 8 for 7.5 billion parameters.
    [(0, 16, 16, 96), (1, 16, 16, 12), (2, 16, 2, 12), (3, 2, 2, 12)],
)
def test_stages_shard_what_the_paper_says(stage: int, weights: int, gradients: int, optimizer: int) -> None:
    device = estimate_memory(SHAPES, train(zero_stage=stage), 8).device
    bucket = {0: 0, 1: 4 * BUCKET_ELEMENTS, 2: 4 * BUCKET_ELEMENTS, 3: 2 * BUCKET_ELEMENTS}[stage]
    found = (device["weights"], device["gradients"] - bucket, device["optimizer"])
    assert found == (weights * 10**9, gradients * 10**9, optimizer * 10**9)
    assert device.get("gathered weights", 0) == (2 * MAX_LIVE_ELEMENTS if stage == 3 else 0)


def test_fp32_at_stage_0_has_no_second_weights() -> None:
    plain = estimate_memory(SHAPES, train(zero_stage=0, precision="fp32"), 1).device
    assert (plain["weights"], plain["optimizer"]) == (32 * 10**9, 64 * 10**9)
    assert plain["activations, or the update"] == SHAPES.activation_bytes


def test_the_update_comes_after_the_activations() -> None:
    few = ModelSize(SHAPES.num_parameters, SHAPES.num_trained, 1)
    assert estimate_memory(few, train(zero_stage=1), 8).device["activations, or the update"] == 4 * 10**9


def test_what_is_offloaded_lies_in_the_nodes_memory() -> None:
    on_gpu, offloaded = (
        estimate_memory(SHAPES, train(zero_stage=3, offload={"optimizer": flag, "parameters": flag}), 8)
        for flag in (False, True)
    )
    assert {"weights", "optimizer"} <= on_gpu.device.keys()
    assert not {"weights", "optimizer"} & offloaded.device.keys()
    # Fp32 gradients beside master weights and moments.
    assert offloaded.host["offloaded optimizer"] == 16 * 10**9
    assert offloaded.host["offloaded weights"] == 2 * 10**9


def test_adapters_have_an_optimizer_of_their_own_size() -> None:
    device = estimate_memory(LORA, train(zero_stage=1), 1).device
    assert device["optimizer"] == 12 * LORA.num_trained
    assert device["weights"] == 16 * 10**9


def test_without_gpus_all_of_it_is_the_nodes() -> None:
    needs = estimate_memory(SHAPES, train(use_gpu=False), 2)
    assert needs.host_total == 0
    assert {"process", "weights"} <= needs.device.keys()


@pytest.mark.parametrize(
    ("values", "shapes", "size"),
    [
        ({"zero_stage": 1}, SHAPES, 112),
        ({"zero_stage": 3}, SHAPES, 96),
        ({"zero_stage": 0, "precision": "fp32"}, SHAPES, 96),
        ({"zero_stage": 1}, LORA, 0.56),
    ],
)
def test_checkpoints_hold_weights_and_optimizer(values: dict[str, object], shapes: ModelSize, size: float) -> None:
    assert checkpoint_bytes(shapes, train(**values)) == int(size * 10**9)


def test_an_adapter_is_exported_alone() -> None:
    assert model_bytes(LORA, train(), is_adapter=True) == 80_000_000
    assert model_bytes(SHAPES, train(), is_adapter=False) == 16 * 10**9


def test_sizes_in_words() -> None:
    assert (format_gib(2**30 + 2**29), format_gib(31 * 2**30)) == ("1.50 GiB", "31 GiB")
