"""worker, all ranks: imports DeepSpeed, and holds all that relies on its private parts.

Written for DeepSpeed 0.19; check every function here when the version changes.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def import_deepspeed(use_gpu: bool) -> Any:
    """Import DeepSpeed for the right accelerator, without its warnings and without compiling its C++ extension."""
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Deprecations inside DeepSpeed 0.19 with torch 2.13, harmless.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(deepspeed|torch)\..*")
    # Heavy, and picks the accelerator at import: only inside a training worker or a validation task.
    import deepspeed  # noqa: PLC0415
    import deepspeed.ops  # noqa: PLC0415

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not use_gpu:
        # Otherwise the first collective compiles an extension for shared memory (over a minute) that is never used.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


@contextmanager
def zero_optimizer_at_stage_1() -> Iterator[None]:
    """Inside the block, engines at stage 1 in bf16 with fp32 gradients get the same optimizer as at stage 2.

    DeepSpeed takes another one there (`BF16_Optimizer`) unless the optimizer is offloaded, which reads no checkpoint of
    the usual one and keeps the sum of all gradients on each rank in addition to them.
    """
    from deepspeed.runtime.engine import DeepSpeedEngine as Engine  # noqa: PLC0415  (heavy, see `import_deepspeed`)

    original = Engine._do_optimizer_sanity_check

    def choose_optimizer(engine: Any, optimizer: Any) -> Any:
        return "zero_optimization" if engine.zero_optimization() else original(engine, optimizer)

    Engine._do_optimizer_sanity_check = choose_optimizer
    try:
        yield
    finally:
        Engine._do_optimizer_sanity_check = original


def keep_fp32_gradients(module: nn.Module) -> None:
    """Have autograd add up the gradients of bf16 weights in fp32, for stage 0: DeepSpeed uses them as they are."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            # At stage 0 DeepSpeed has allocated bf16 gradients.
            parameter.grad = None
            parameter.grad_dtype = torch.float32


def patch_zero3_overflow_check(optimizer: Any) -> None:
    """Make ZeRO-3 skip steps with a non-finite gradient, as the other stages do. Its own check looks at fp16 only."""

    def check(update_scale: bool = True) -> bool:
        optimizer.check_overflow()
        return bool(optimizer._loss_scale_update_and_overflow_cleanup() if update_scale else optimizer.overflow)

    optimizer._overflow_check_and_loss_scale_update = check


def patch_offload_reset(optimizer: Any) -> None:
    """Make stages 1 and 2 forget the gradients of a skipped step where the optimizer is offloaded.

    DeepSpeed adds the next gradients to them, so one non-finite gradient in bf16 would skip every later step.
    """
    reset_cpu_buffers = optimizer.reset_cpu_buffers

    def reset() -> None:
        reset_cpu_buffers()
        optimizer.averaged_gradients = dict.fromkeys(optimizer.averaged_gradients)

    optimizer.reset_cpu_buffers = reset


def gather_zero3_weights(engine: Any, *, exclude_frozen: bool) -> dict[str, Tensor] | None:
    """Gather the weights that ZeRO-3 has sharded: all of them on rank 0, None on the other ranks."""
    state: dict[str, Tensor] | None = engine._zero3_consolidated_16bit_state_dict(exclude_frozen)
    return state


def unsharded_numel(parameter: nn.Parameter) -> int:
    """Number of elements of a parameter before sharding. One that ZeRO-3 has sharded is empty between its uses."""
    return int(parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel())


def unsharded_ndim(parameter: nn.Parameter) -> int:
    """Number of dimensions of a parameter before sharding."""
    return len(parameter.ds_shape) if hasattr(parameter, "ds_shape") else parameter.dim()
