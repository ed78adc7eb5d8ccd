"""Tuning on a GPU: NCCL, DeepSpeed, bf16 and FlexAttention in a Ray Train worker, and what the run reports."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.config.schema import Config
from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.capacity.memory import estimate_memory
from instruct_ray.training.capacity.model_sizer import ModelSizer
from instruct_ray.training.driver.tune import tune
from instruct_ray.training.model.packing_check import PackingCheck
from instruct_ray.training.worker.spec import PACKING_CHECK_FILE
from tests import tiny
from tests.fakes import ignore_status, ray_is_running
from tests.gpu.gpu_mark import NEEDS_GPU

pytestmark = NEEDS_GPU
STEPS = {"examples_per_step": 12, "epochs": 6, "checkpoint_every": 10, "learning_rate": 1e-2}
ON_GPU = STEPS | {"use_gpu": True, "precision": "bf16"}
LORA = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]}
# Relative difference of a step's loss in bf16 from that in fp32 of a tiny model that learns fast.
BF16_TOLERANCE = 0.05


def read_metrics(config: Config) -> list[dict[str, float]]:
    return [json.loads(line) for line in RunFolder.from_config(config).metrics_file.read_text().splitlines()]


def read_losses(config: Config) -> list[float]:
    return [line["loss"] for line in read_metrics(config)]


def load_weights(config: Config) -> dict[str, torch.Tensor]:
    return load_file(RunFolder.from_config(config).model_dir / "model.safetensors")


def tune_run(config: Config) -> Config:
    tune(config, ignore_status, ray_is_running)
    return config


@pytest.fixture(scope="module")
def cpu_losses(configure_run: Callable[..., Config]) -> list[float]:
    """The losses of the same run on a CPU in fp32."""
    return read_losses(tune_run(configure_run(train=STEPS | {"precision": "fp32"})))


@pytest.fixture(scope="module")
def gpu_run(configure_run: Callable[..., Config]) -> Config:
    return tune_run(configure_run(train=ON_GPU | {"zero_stage": 1}))


@pytest.mark.parametrize(
    "train", [{"zero_stage": 0}, {"zero_stage": 3}, {"zero_stage": 3, "precision": "fp32"}], ids=str
)
def test_losses_are_those_of_a_cpu(
    configure_run: Callable[..., Config], cpu_losses: Sequence[float], train: dict[str, Any]
) -> None:
    config = tune_run(configure_run(train=ON_GPU | train))
    tolerance = 1e-3 if config.train.precision == "fp32" else BF16_TOLERANCE
    assert read_losses(config) == pytest.approx(cpu_losses, rel=tolerance)


def test_run_is_packed_and_plain_transformers_loads_its_model(gpu_run: Config, cpu_losses: Sequence[float]) -> None:
    folder = RunFolder.from_config(gpu_run)
    check = PackingCheck.model_validate_json((folder.path / PACKING_CHECK_FILE).read_text())
    assert (check.path, check.attn_implementation) == ("packed", "flex_attention")
    assert read_losses(gpu_run) == pytest.approx(cpu_losses, rel=BF16_TOLERANCE)
    model = AutoModelForCausalLM.from_pretrained(folder.model_dir)
    assert model.dtype == torch.bfloat16


def test_metrics_have_memory_and_utilization(gpu_run: Config) -> None:
    last = read_metrics(gpu_run)[-1]
    assert 2**20 < last["gpu_peak_bytes"] < torch.cuda.get_device_properties(0).total_memory
    # GPUs whose peak is known.
    if "H100" in torch.cuda.get_device_name() or "H200" in torch.cuda.get_device_name():
        assert 0 < last["mfu"] < 1


def test_adapter_is_tuned(configure_run: Callable[..., Config], flex_base: Any) -> None:
    model = {"base": str(flex_base), "lora": LORA}
    losses = read_losses(tune_run(configure_run(model=model, train=ON_GPU | {"zero_stage": 2})))
    assert losses[-1] < 0.9 * losses[0]


def test_compiled_model_has_the_same_losses(configure_run: Callable[..., Config], cpu_losses: Sequence[float]) -> None:
    config = tune_run(configure_run(train=ON_GPU | {"zero_stage": 1, "compile": True}))
    assert read_losses(config) == pytest.approx(cpu_losses, rel=BF16_TOLERANCE)


def test_killed_worker_resumes_to_the_same_weights(configure_run: Callable[..., Config]) -> None:
    train = ON_GPU | {"zero_stage": 1, "epochs": 40, "max_failures": 1}
    expected = load_weights(tune_run(configure_run(train=train)))
    config = configure_run(train=train)
    killed = threading.Event()
    thread = threading.Thread(target=kill_worker_at_step, args=(config, 25, killed))
    thread.start()
    tune_run(config)
    thread.join()
    assert killed.is_set()
    weights = load_weights(config)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name]), f"{name}: {(weight - expected[name]).abs().max()}"


def kill_worker_at_step(config: Config, step: int, killed: threading.Event) -> None:
    """SIGKILL the training worker once it has trained some steps."""
    metrics_file = RunFolder.from_config(config).metrics_file
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if metrics_file.is_file() and len(metrics_file.read_text().splitlines()) >= step:
            for process in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.set()
            return
        time.sleep(0.02)


@pytest.mark.parametrize("train", [{"zero_stage": 1}, {"zero_stage": 3, "activation_checkpointing": True}], ids=str)
def test_memory_is_as_estimated(
    tmp_path: Any, tokenizer: PreTrainedTokenizerFast, triples_file: Any, ray_with_gpu: None, train: dict[str, Any]
) -> None:
    base = tmp_path / "base"
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "vocab_size": 32_000}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=16, num_key_value_heads=4)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    data = {"pack_tokens": 1024, "max_tokens": 256}
    config = tiny.configure(tmp_path, base, triples_file, data=data, train=ON_GPU | {"epochs": 1} | train)
    prepare(config, ray_is_running)
    tune_run(config)
    hf_config = load_hf_config(base)
    sizer = ModelSizer.from_packs(hf_config, None, find_packs(RunFolder.from_config(config)), config.train, ())
    estimate = estimate_memory(sizer.compute_size(None, config.train), config.train, 1)
    # What CUDA and NCCL take is not torch's.
    expected = sum(num_bytes for part, num_bytes in estimate.device.items() if part != "CUDA and NCCL")
    measured = read_metrics(config)[-1]["gpu_peak_bytes"]
    print(f"{train}: estimated {expected / 2**30:.2f} GiB, measured {measured / 2**30:.2f} GiB")
    assert measured == pytest.approx(expected, rel=0.25)
