"""pure: the `train` section of the config -> DeepSpeed's settings."""

from typing import Any

from instruct_ray.config.train import TrainConfig

# A GPU's bucket is DeepSpeed's default. On a CPU, larger ones are no faster than the network, and take memory.
GPU_BUCKET_ELEMENTS, CPU_BUCKET_ELEMENTS = 500_000_000, 50_000_000


def uses_torch_optimizer(train: TrainConfig) -> bool:
    """Whether torch's optimizer works on the model's own weights and gradients: not sharded, not mixed precision.

    DeepSpeed can clip these gradients, but does not report their norm, so the engine clips them.
    """
    return train.zero_stage == 0 and train.precision == "fp32"


def bucket_elements(train: TrainConfig, num_trainable: int) -> int:
    """Elements of the buffer in which DeepSpeed reduces gradients; more than all gradients would only take memory."""
    return min(GPU_BUCKET_ELEMENTS if train.use_gpu else CPU_BUCKET_ELEMENTS, max(1, num_trainable))


def build_deepspeed_config(
    train: TrainConfig, packs_per_rank: int, world_size: int, *, is_universal: bool = False
) -> dict[str, Any]:
    """Build the settings of an engine; `is_universal` if it will load a universal checkpoint.

    The size of the bucket, `bucket_elements`, is set once the model is loaded.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": packs_per_rank,
        "train_batch_size": packs_per_rank * world_size,
        "gradient_clipping": 0.0 if uses_torch_optimizer(train) else train.max_grad_norm,
        "bf16": {"enabled": train.precision == "bf16"},
        **_build_gradient_settings(train),
        "zero_optimization": {
            "stage": train.zero_stage,
            # Overlapping needs CUDA streams: not with gloo.
            "overlap_comm": train.use_gpu,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
            **_build_offload_settings(train),
        },
        # torch's AdamW even where the optimizer is offloaded, so that nothing is compiled at run time.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": is_universal},
        # Never: metrics.jsonl has the same numbers.
        "steps_per_print": 2**31,
    }


def _build_gradient_settings(train: TrainConfig) -> dict[str, Any]:
    """Add up and reduce gradients in fp32: a bf16 sum loses what is smaller than a 256th of it.

    Stage 0 refuses this setting, so the engine has the gradients of its parameters in fp32 (`keep_fp32_gradients`).
    """
    if train.zero_stage == 0:
        return {"communication_data_type": "fp32"}
    return {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}


def _build_offload_settings(train: TrainConfig) -> dict[str, Any]:
    """Memory is pinned for copies to a GPU only."""
    target = {"device": "cpu", "pin_memory": train.use_gpu}
    is_offloaded = {"offload_optimizer": train.offload.optimizer, "offload_param": train.offload.parameters}
    return {name: target for name, is_chosen in is_offloaded.items() if is_chosen}
