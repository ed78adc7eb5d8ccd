"""worker, all ranks: collectives on the process group that Ray made. All ranks make the same calls."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def broadcast_object(value: Any, device: torch.device) -> Any:
    """The value of rank 0, on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=0, device=device)
    return values[0]


def gather_objects(value: Any) -> list[Any]:
    """The values of all ranks, on every rank; indexed by rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_sums(values: Mapping[str, float | Tensor], device: torch.device) -> dict[str, float]:
    """The sum of each named number over all ranks, in one all-reduce in float64.

    A vote is such a number: 1 from a rank that asks for something, and its sum is positive if any rank does.
    """
    sums = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in values.values()])
    dist.all_reduce(sums)
    return dict(zip(values, sums.tolist(), strict=True))
