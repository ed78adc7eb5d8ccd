"""Model FLOPs utilization, and the memory of a GPU: the peaks of known GPUs, and the operations of a token."""

import pytest
import torch
from torch import nn

from instruct_ray.training.worker.gpu_meter import PEAK_FLOPS, GpuMeter, find_peak_flops, flops_per_token


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
    ],
)
def test_peak_is_found_by_whole_words_of_the_device_name(name: str, peak: float | None) -> None:
    assert find_peak_flops(name) == peak


def test_every_known_peak_can_be_found() -> None:
    assert all(find_peak_flops(f"NVIDIA {name}") == peak for name, peak in PEAK_FLOPS.items())


def test_frozen_weights_count_without_their_own_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    assert flops_per_token(model) == 6 * 200
    model[0].requires_grad_(False)
    assert flops_per_token(model) == 4 * 100 + 6 * 100
    assert GpuMeter(model, torch.device("cpu"), "bf16", 1).record(5, 1.0) == {}
    # What a machine with this GPU says.
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2**30)
    fp32 = GpuMeter(model, torch.device("cuda"), "fp32", 2).record(5, 1.0)
    assert fp32 == {"gpu_peak_bytes": 2**30}
    bf16 = GpuMeter(model, torch.device("cuda"), "bf16", 2).record(10**9, 1.0)
    assert bf16 == fp32 | {"mfu": 1000 * 10**9 / (2 * 989e12)}
