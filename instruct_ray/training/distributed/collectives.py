"""worker, all ranks: collectives on the process group that Ray Train created."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def broadcast_object(value: Any, device: torch.device) -> Any:
    """Return rank 0's value on every rank. Collective."""
    values = [value]
    dist.broadcast_object_list(values, src=0, device=device)
    return values[0]


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all ranks on every rank, in the order of the ranks. Collective."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_sums(values: Mapping[str, float | Tensor], device: torch.device) -> dict[str, float]:
    """Sum each named number over all ranks, in a single all-reduce in float64. Collective.

    A boolean is a vote: its sum is positive if any rank votes for it.
    """
    sums = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in values.values()])
    dist.all_reduce(sums)
    return dict(zip(values, sums.tolist(), strict=True))
