"""validation task: the weights of a DeepSpeed checkpoint, read by one process without an engine."""

from pathlib import Path

import torch
from torch import Tensor

from instruct_ray.training.distributed.deepspeed_internals import import_deepspeed

RANK_0_WEIGHTS = "mp_rank_00_model_states.pt"


def pickled_files(folder: Path, tag: str, zero_stage: int) -> list[str]:
    """The files of a checkpoint, relative to its folder, that `load_checkpoint_weights` unpickles."""
    if zero_stage < 3:
        return [f"{tag}/{RANK_0_WEIGHTS}"]
    return sorted(str(path.relative_to(folder)) for path in (folder / tag).glob("*.pt"))


def load_checkpoint_weights(folder: Path, tag: str, zero_stage: int) -> dict[str, Tensor]:
    """Load the unsharded trained weights of a checkpoint that all ranks have committed.

    DeepSpeed pickles them. So the storage of the run must be trusted, and `pickled_files` checked before.
    """
    if zero_stage < 3:
        # Every rank wrote all weights, so those of rank 0 are enough.
        state = torch.load(folder / tag / RANK_0_WEIGHTS, map_location="cpu", weights_only=False)
        return dict(state["module"])
    import_deepspeed(use_gpu=False)
    from deepspeed.utils.zero_to_fp32 import (  # noqa: PLC0415  (imports deepspeed)
        get_fp32_state_dict_from_zero_checkpoint,
    )

    return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=tag, exclude_frozen_parameters=True))
