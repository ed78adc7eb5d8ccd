"""How much of its GPUs a training uses: model FLOPs utilisation by the rule of six operations per weight and token."""

import torch
from torch import nn

# Dense bf16 matrix products, operations per second, from NVIDIA's data sheets. The first whose words are all in the
# device's name counts.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def find_peak_flops(name: str) -> float | None:
    """The peak of a device by the name that CUDA gives it; None if it is not known."""
    words = set(name.replace("-", " ").split())
    return next((peak for known, peak in PEAK_FLOPS.items() if words.issuperset(known.split())), None)


def flops_per_token(model: nn.Module) -> int:
    """Operations of forward and backward for one token: two per weight forward, two for the gradient that is passed
    on, two for the weight's own if it is trained. Attention is left out, activations computed again do not count."""
    total = 0
    for parameter in model.parameters():
        # ZeRO-3 keeps no weight whole; what it sharded knows its size.
        size = parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()
        total += (6 if parameter.requires_grad else 4) * int(size)
    return total


class MfuMeter:
    """The utilisation of all GPUs of a run, where their peak is known."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str, world_size: int) -> None:
        peak = (
            find_peak_flops(torch.cuda.get_device_name(device))
            if device.type == "cuda" and precision == "bf16"
            else None
        )
        self._peak = None if peak is None else peak * world_size
        self._flops_per_token = flops_per_token(model)

    def record(self, num_computed_tokens: int, seconds: float) -> dict[str, float]:
        """`mfu` of a step, from 0 to 1; nothing where the peak is not known."""
        if self._peak is None:
            return {}
        return {"mfu": self._flops_per_token * num_computed_tokens / seconds / self._peak}
