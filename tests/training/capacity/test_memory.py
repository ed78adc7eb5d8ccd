"""Estimated bytes by ZeRO stage, offloading and adapter, compared with the published formulas."""

import pytest

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.capacity.memory import (
    MAX_LIVE_ELEMENTS,
    ModelSize,
    checkpoint_bytes,
    estimate_memory,
    format_gib,
    model_bytes,
)
from instruct_ray.training.distributed.deepspeed_config import GPU_BUCKET_ELEMENTS

FULL = ModelSize(num_parameters=8_000_000_000, num_trainable=8_000_000_000, activation_bytes=5_000_000_000)
LORA = ModelSize(num_parameters=8_000_000_000, num_trainable=40_000_000, activation_bytes=5_000_000_000)


def make_train_config(**values: object) -> TrainConfig:
    return TrainConfig.model_validate({"use_gpu": True} | values)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    # In GB per rank: Rajbhandari et al. 2020, figure 1, with 8 instead of 64 ranks and 8 instead of 7.5 billion
    # parameters. Its gradients are in 16 bits, ours in fp32.
    [(0, 16, 32, 96), (1, 16, 32, 12), (2, 16, 4, 12), (3, 2, 4, 12)],
)
def test_stages_shard_as_in_the_paper(stage: int, weights: int, gradients: int, optimizer: int) -> None:
    device = estimate_memory(FULL, make_train_config(zero_stage=stage), 8).device
    bucket = {0: 0, 1: 12 * GPU_BUCKET_ELEMENTS, 2: 12 * GPU_BUCKET_ELEMENTS, 3: 8 * GPU_BUCKET_ELEMENTS}[stage]
    sizes = (device["weights"], device["gradients"] - bucket, device["optimizer"])
    assert sizes == (weights * 10**9, gradients * 10**9, optimizer * 10**9)
    assert device.get("gathered weights", 0) == (2 * MAX_LIVE_ELEMENTS if stage == 3 else 0)


def test_fp32_at_stage_0_has_no_master_weights() -> None:
    device = estimate_memory(FULL, make_train_config(zero_stage=0, precision="fp32"), 1).device
    assert (device["weights"], device["optimizer"]) == (32 * 10**9, 64 * 10**9)
    assert device["activations or weight update"] == FULL.activation_bytes


def test_weight_update_reuses_the_memory_of_the_activations() -> None:
    few_activations = ModelSize(FULL.num_parameters, FULL.num_trainable, 1)
    device = estimate_memory(few_activations, make_train_config(zero_stage=1), 8).device
    assert device["activations or weight update"] == 4 * 10**9


def test_buffers_for_gradients_are_no_larger_than_the_gradients() -> None:
    # 40 million parameters of an adapter: a bucket and its copy.
    device = estimate_memory(LORA, make_train_config(use_gpu=False, zero_stage=2), 4).device
    assert device["gradients"] == 4 * LORA.num_trainable // 4 + 8 * LORA.num_trainable


def test_offloading_moves_memory_to_the_host() -> None:
    on_gpu, offloaded = (
        estimate_memory(FULL, make_train_config(zero_stage=3, offload={"optimizer": flag, "parameters": flag}), 8)
        for flag in (False, True)
    )
    assert {"weights", "optimizer"} <= on_gpu.device.keys()
    assert not {"weights", "optimizer"} & offloaded.device.keys()
    # Master weights, moments and fp32 gradients.
    assert offloaded.host["offloaded optimizer"] == 16 * 10**9
    assert offloaded.host["offloaded weights"] == 2 * 10**9


def test_optimizer_of_adapters_is_small() -> None:
    device = estimate_memory(LORA, make_train_config(zero_stage=1), 1).device
    assert device["optimizer"] == 12 * LORA.num_trainable
    assert device["weights"] == 16 * 10**9


def test_without_gpus_everything_is_device_memory() -> None:
    estimate = estimate_memory(FULL, make_train_config(use_gpu=False), 2)
    assert estimate.host_total == 0
    assert {"process", "weights"} <= estimate.device.keys()


@pytest.mark.parametrize(
    ("values", "model_size", "gigabytes"),
    [
        ({"zero_stage": 1}, FULL, 112),
        ({"zero_stage": 3}, FULL, 96),
        ({"zero_stage": 0, "precision": "fp32"}, FULL, 96),
        ({"zero_stage": 1}, LORA, 0.56),
    ],
)
def test_checkpoints_hold_weights_and_optimizer(
    values: dict[str, object], model_size: ModelSize, gigabytes: float
) -> None:
    assert checkpoint_bytes(model_size, make_train_config(**values)) == int(gigabytes * 10**9)


def test_exported_adapter_has_trainable_parameters_only() -> None:
    assert model_bytes(LORA, make_train_config(), is_adapter=True) == 80_000_000
    assert model_bytes(FULL, make_train_config(), is_adapter=False) == 16 * 10**9


def test_sizes_are_formatted_in_gib() -> None:
    assert (format_gib(2**30 + 2**29), format_gib(31 * 2**30)) == ("1.50 GiB", "31 GiB")
