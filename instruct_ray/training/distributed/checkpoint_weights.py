"""validation task: the weights of a DeepSpeed checkpoint, read by one process without an engine."""

from pathlib import Path

import torch
from torch import Tensor

from instruct_ray.training.distributed.deepspeed_internals import import_deepspeed


def load_checkpoint_weights(folder: Path, tag: str, zero_stage: int) -> dict[str, Tensor]:
    """Load the unsharded trained weights of a checkpoint that all ranks have committed."""
    if zero_stage < 3:
        # Every rank wrote all weights, so those of rank 0 are enough. DeepSpeed pickles them, hence `weights_only`;
        # the checkpoint is this run's own, and its manifests list it.
        state = torch.load(folder / tag / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
        return dict(state["module"])
    import_deepspeed(use_gpu=False)
    from deepspeed.utils.zero_to_fp32 import (  # noqa: PLC0415  (imports deepspeed)
        get_fp32_state_dict_from_zero_checkpoint,
    )

    return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=tag, exclude_frozen_parameters=True))
