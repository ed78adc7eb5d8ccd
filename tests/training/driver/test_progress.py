"""What is shown of a training: the line, the utilisation of GPUs, and the machine beside it."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from instruct_ray.training.driver.progress import WINDOW, Progress
from instruct_ray.training.worker import system_metrics
from instruct_ray.training.worker.mfu import PEAK_FLOPS, MfuMeter, find_peak_flops, flops_per_token
from instruct_ray.training.worker.system_metrics import record_system_metrics, sample_system_metrics

RECORD = {
    "step": 40,
    "num_steps": 100,
    "epoch": 0.4,
    "loss": 1.2345,
    "lr": 9.1e-5,
    "grad_norm": 0.567,
    "num_tokens": 1000,
    "num_trained": 100,
    "seconds": 2.0,
    "wait_seconds": 0.1,
}


def test_the_line_says_how_far_it_is() -> None:
    assert Progress().line(RECORD) == (
        "step 40/100  epoch 0.40  loss 1.234  lr 9.1e-05  grad norm 0.57  500 tokens/s (50 trained)  data wait 5%  "
        "0:02:00 left"
    )


def test_rates_are_those_of_the_last_steps() -> None:
    progress = Progress()
    progress.line(RECORD | {"seconds": 1000.0})
    for _ in range(WINDOW):
        line = progress.line(RECORD | {"mfu": 0.414})
    assert "500 tokens/s" in line
    assert "MFU 41%  0:02:00 left" in line


def test_a_step_that_was_left_out_has_no_loss() -> None:
    assert "loss none" in Progress().line(RECORD | {"loss": None, "grad_norm": None})


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
def test_peaks_are_found_by_whole_words(name: str, peak: float | None) -> None:
    assert find_peak_flops(name) == peak


def test_frozen_weights_need_no_gradient_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    assert flops_per_token(model) == 6 * 200
    model[0].requires_grad_(False)
    assert flops_per_token(model) == 4 * 100 + 6 * 100
    assert MfuMeter(model, torch.device("cpu"), "bf16", 1).record(5, 1.0) == {}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert MfuMeter(model, torch.device("cuda"), "fp32", 2).record(5, 1.0) == {}
    assert MfuMeter(model, torch.device("cuda"), "bf16", 2).record(10**9, 1.0) == {"mfu": 1000 * 10**9 / (2 * 989e12)}


def test_samples_go_on_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics, "SECONDS", 0.05)
    path = tmp_path / "system-0.jsonl"
    for _ in range(2):
        with record_system_metrics(path):
            time.sleep(0.3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert len(lines) >= 6
    assert 0 < lines[-1]["system_memory_usage_percentage"] < 100
    with record_system_metrics(None):
        pass


def test_gpus_are_asked_for_by_their_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '87, 1000, 350.5'\necho '0, 0, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = {key: value for key, value in sample_system_metrics().items() if key.startswith("gpu")}
    assert found == {
        "gpu_0_utilization_percentage": 87,
        "gpu_0_memory_usage_megabytes": 1048.6,
        "gpu_0_power_usage_watts": 350.5,
        "gpu_1_utilization_percentage": 0,
        "gpu_1_memory_usage_megabytes": 0,
    }
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(system_metrics, "GPU_TIMEOUT_SECONDS", 0.2)
    assert not [key for key in sample_system_metrics() if key.startswith("gpu")]


def test_every_known_peak_is_reachable() -> None:
    assert all(find_peak_flops(f"NVIDIA {name}") == peak for name, peak in PEAK_FLOPS.items())
