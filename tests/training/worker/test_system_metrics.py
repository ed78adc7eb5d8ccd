"""System metrics: samples of CPU, memory and GPUs during training."""

import json
import time
from pathlib import Path

import pytest

from instruct_ray.training.worker import system_metrics
from instruct_ray.training.worker.system_metrics import record_system_metrics, sample_system_metrics


def test_resumed_run_continues_the_sample_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics, "SECONDS", 0.05)
    path = tmp_path / "system-0.jsonl"
    for _ in range(2):
        with record_system_metrics(path, None):
            time.sleep(0.3)
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sample["step"] for sample in samples] == list(range(len(samples)))
    assert len(samples) >= 6
    assert 0 < samples[-1]["system_memory_usage_percentage"] < 100
    with record_system_metrics(None, None):
        pass


def test_gpus_are_sampled_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '87, 1000, 350.5'\necho '0, 0, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    gpus = {key: value for key, value in sample_system_metrics().items() if key.startswith("gpu")}
    assert gpus == {
        "gpu_0_utilization_percentage": 87,
        "gpu_0_memory_usage_megabytes": 1048.6,
        "gpu_0_power_usage_watts": 350.5,
        "gpu_1_utilization_percentage": 0,
        "gpu_1_memory_usage_megabytes": 0,
    }
    # A hanging nvidia-smi is given up.
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(system_metrics, "GPU_TIMEOUT_SECONDS", 0.2)
    assert not [key for key in sample_system_metrics() if key.startswith("gpu")]


def test_last_sample_is_written_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "system-0.jsonl"
    with record_system_metrics(path, None):
        assert not path.exists()
    [sample] = [json.loads(line) for line in path.read_text().splitlines()]
    assert sample["step"] == 0


def test_hanging_nvidia_smi_does_not_block_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(system_metrics, "JOIN_TIMEOUT_SECONDS", 0.2)
    started = time.monotonic()
    with record_system_metrics(tmp_path / "system-0.jsonl", None):
        pass
    assert time.monotonic() - started < system_metrics.GPU_TIMEOUT_SECONDS
