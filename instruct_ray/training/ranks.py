"""What one rank knows -> all ranks."""

from typing import Any

import torch
import torch.distributed as dist


def from_rank_0(value: Any, device: torch.device) -> Any:
    """The value of rank 0 on every rank; all ranks call it, on the process group that Ray made."""
    values = [value]
    dist.broadcast_object_list(values, src=0, device=device)
    return values[0]
