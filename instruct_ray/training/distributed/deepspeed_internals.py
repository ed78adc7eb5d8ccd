"""worker, all ranks: imports DeepSpeed, and holds all that relies on its private parts.

Written for DeepSpeed 0.19; check every function here when the version changes.
"""

import logging
import os
import warnings
from typing import Any

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


def patch_zero3_overflow_check(optimizer: Any) -> None:
    """Make ZeRO-3 skip steps with a non-finite gradient, as the other stages do. Its own check looks at fp16 only."""

    def check(update_scale: bool = True) -> bool:
        optimizer.check_overflow()
        return bool(optimizer._loss_scale_update_and_overflow_cleanup() if update_scale else optimizer.overflow)

    optimizer._overflow_check_and_loss_scale_update = check


def gather_zero3_weights(engine: Any, *, exclude_frozen: bool) -> dict[str, Tensor] | None:
    """Gather the weights that ZeRO-3 has sharded: all of them on rank 0, None on the other ranks."""
    state: dict[str, Tensor] | None = engine._zero3_consolidated_16bit_state_dict(exclude_frozen)
    return state


def unsharded_numel(parameter: nn.Parameter) -> int:
    """Number of elements of a parameter before sharding. One that ZeRO-3 has sharded is empty between its uses."""
    return int(parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel())
