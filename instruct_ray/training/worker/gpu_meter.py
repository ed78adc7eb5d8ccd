"""worker, all ranks: model FLOPs utilization (MFU) of a training step, and the memory that it takes on this GPU.

MFU as in PaLM (Chowdhery et al. 2022), with six operations per trained weight and token.
"""

import torch
from torch import nn

from instruct_ray.training.distributed.deepspeed_internals import unsharded_numel

# Peak FLOPS of dense bf16 matrix products, from NVIDIA's data sheets. The first entry whose words all occur in the name
# of the device applies.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def find_peak_flops(device_name: str) -> float | None:
    """Find the peak FLOPS of a device by its CUDA name; None if it is unknown."""
    words = set(device_name.replace("-", " ").split())
    return next((peak for name, peak in PEAK_FLOPS.items() if words.issuperset(name.split())), None)


def flops_per_token(model: nn.Module) -> int:
    """Count the floating-point operations of the forward and backward pass of one token.

    Per weight: two forward, two for the gradient of its input, two for its own gradient if it is trained. Attention
    and recomputed activations are not counted.
    """
    return sum((6 if parameter.requires_grad else 4) * unsharded_numel(parameter) for parameter in model.parameters())


class GpuMeter:
    """Measures training on GPUs; on CPUs it measures nothing."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str, world_size: int) -> None:
        is_measurable = device.type == "cuda" and precision == "bf16"
        peak = find_peak_flops(torch.cuda.get_device_name(device)) if is_measurable else None
        self._peak = None if peak is None else peak * world_size
        self._device = device
        self._flops_per_token = flops_per_token(model)

    def record(self, num_computed_tokens: int, seconds: float) -> dict[str, float]:
        """Measure a step; returns an empty dict on a CPU.

        `num_computed_tokens` counts the tokens of all ranks.

        Returns:
            `gpu_peak_bytes`, the most memory that torch has taken from this rank's GPU since the start; and `mfu` over
            all GPUs, from 0 to 1, in bf16 on GPUs whose peak is known.
        """
        if self._device.type != "cuda":
            return {}
        values = {"gpu_peak_bytes": float(torch.cuda.max_memory_reserved(self._device))}
        if self._peak is not None:
            values["mfu"] = self._flops_per_token * num_computed_tokens / seconds / self._peak
        return values
