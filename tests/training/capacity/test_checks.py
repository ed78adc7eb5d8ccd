"""The checks before a run, on made-up node reports and on a real cluster."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from instruct_ray.config.schema import Config
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.open_run import SECTIONS
from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.doctor.doctor import run_checks
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder
from instruct_ray.run.frozen import check_config_unchanged
from instruct_ray.training.capacity import nodes
from instruct_ray.training.capacity.activations import PackShape
from instruct_ray.training.capacity.checks import check_capacity, check_precision, raise_if_failed
from instruct_ray.training.capacity.findings import CheckInput, Finding
from instruct_ray.training.capacity.memory import GIB
from instruct_ray.training.capacity.memory_check import check_memory
from instruct_ray.training.capacity.model_sizer import ModelSizer
from instruct_ray.training.capacity.nodes import NodeReport, gpu_memory, list_alive_nodes, node_memory, probe_nodes
from instruct_ray.training.capacity.placement import Node
from instruct_ray.training.driver.build_spec import build_plan
from instruct_ray.training.driver.tune import tune
from instruct_ray.training.worker.spec import PACKING_CHECK_FILE
from tests.fakes import ignore_status, ray_is_running
from tests.training.capacity.waiting_probe import SECONDS

# 8 billion parameters, with the sizes of Llama 3.
LLAMA_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
TWO_WORKERS = {"id-0": 2}


@pytest.fixture
def large(tmp_path: Path) -> CheckInput:
    """A run that needs more memory than a test machine has."""
    train = TrainConfig(num_workers=2, use_gpu=True, zero_stage=1)
    sizer = ModelSizer(LLAMA_8B, "flex_attention", PackShape(1, 4096, 1024, 0))
    return CheckInput(tmp_path / "runs" / "large", None, train, sizer)


def make_report(num_gpus: int, gpu_gib: int, node_gib: int) -> NodeReport:
    gpus = (gpu_gib * GIB,) * num_gpus
    return NodeReport(Node("id-0", "node-0", 64, num_gpus), memory=node_gib * GIB, gpu_memory=gpus)


def find_finding(check: str, findings: Iterable[Finding]) -> Finding:
    [finding] = [finding for finding in findings if finding.check == check]
    return finding


def test_too_little_gpu_memory_is_an_error_with_suggestions(large: CheckInput) -> None:
    findings = list(check_memory(large, [make_report(2, 80, 512)], TWO_WORKERS))
    gpu_finding = find_finding("GPU memory", findings)
    assert gpu_finding.verdict == "error"
    assert "80 GiB are available; would fit: " in gpu_finding.message
    assert "train.zero_stage=1 train.offload.optimizer=true (" in gpu_finding.message
    assert find_finding("memory", findings).verdict == "ok"
    with pytest.raises(InputError, match=r"^GPU memory: a worker needs \d+ GiB \(weights 15 GiB, gradients"):
        raise_if_failed(findings)


def test_more_ranks_or_adapters_need_less_memory(large: CheckInput) -> None:
    eight_workers = replace(large, train=large.train.model_copy(update={"num_workers": 8}))
    findings = check_memory(eight_workers, [make_report(8, 141, 2048)], {"id-0": 8})
    assert [finding.verdict for finding in findings] == ["ok", "ok"]
    gpu_finding = find_finding("GPU memory", check_memory(large, [make_report(2, 40, 512)], TWO_WORKERS))
    assert "model.lora={rank: 16}" in gpu_finding.message


def test_nothing_is_suggested_if_nothing_fits(large: CheckInput) -> None:
    gpu_finding = find_finding("GPU memory", check_memory(large, [make_report(2, 4, 16)], TWO_WORKERS))
    assert "no other setting fits either" in gpu_finding.message


def test_unknown_gpu_memory_is_only_a_warning(large: CheckInput) -> None:
    gpu_finding = find_finding("GPU memory", check_memory(large, [make_report(0, 0, 512)], TWO_WORKERS))
    assert gpu_finding.verdict == "warning"
    assert gpu_finding.message.endswith("; the nodes' GPU memory is unknown")


def test_offloading_needs_node_memory(large: CheckInput) -> None:
    offload = large.train.offload.model_copy(update={"optimizer": True})
    offloaded = replace(large, train=large.train.model_copy(update={"offload": offload}))
    findings = list(check_memory(offloaded, [make_report(2, 141, 96)], TWO_WORKERS))
    assert find_finding("GPU memory", findings).verdict == "ok"
    memory_finding = find_finding("memory", findings)
    assert memory_finding.verdict == "error"
    assert "offloaded optimizer 60 GiB" in memory_finding.message


@pytest.mark.usefixtures("ray_4_cpus")
def test_run_that_fits_passes_all_checks(make_config: Callable[..., Config]) -> None:
    config = make_config(train={"precision": "fp32"})
    run_folder = RunFolder.from_config(config)
    prepare(config, ray_is_running)
    findings = run_checks(config, ignore_status, ray_is_running, is_timed=True)
    assert {finding.verdict for finding in findings} == {"ok"}
    checks = ["placement", "storage", "memory", "disk", "local disk", "packs", "steps", "packing check", "time"]
    assert [finding.check for finding in findings] == checks
    # Training reuses the packing check.
    assert (run_folder.path / PACKING_CHECK_FILE).is_file()
    num_steps = build_plan(config, find_packs(run_folder)).num_steps
    expected = rf"0:00:\d\d for all {num_steps} steps \([\d.]+ s per step, the median of \d+\), checkpoints not counted"
    assert re.fullmatch(expected, find_finding("time", findings).message)
    # The storage test and the trial run leave nothing.
    assert list(config.run.storage.iterdir()) == [run_folder.path]
    assert not (run_folder.path / "metrics.jsonl").exists()


@pytest.mark.usefixtures("ray_4_cpus")
def test_run_without_packs_can_be_checked(make_config: Callable[..., Config]) -> None:
    findings = run_checks(make_config(), ignore_status, ray_is_running, is_timed=True)
    assert "not prepared yet" in find_finding("packs", findings).message
    assert find_finding("memory", findings).verdict == "ok"
    assert find_finding("time", findings).message == "not timed: no packs yet"


@pytest.mark.usefixtures("ray_4_cpus")
def test_workers_without_packs_are_a_warning(make_config: Callable[..., Config]) -> None:
    config = make_config(train={"examples_per_step": 1, "num_workers": 3})
    prepare(config, ray_is_running)
    findings = run_checks(config, ignore_status, ray_is_running, is_timed=False)
    steps_finding = find_finding("steps", findings)
    assert steps_finding.verdict == "warning"
    assert "2 worker(s) get no pack: raise train.examples_per_step" in steps_finding.message


@pytest.mark.usefixtures("ray_4_cpus")
def test_run_that_can_not_be_placed_is_refused_and_stays_changeable(make_config: Callable[..., Config]) -> None:
    config = make_config(train={"num_workers": 4})
    prepare(config, ray_is_running)
    with pytest.raises(InputError, match=r"placement: 4 worker\(s\) of 1 CPU plus 1 CPU .* set train.num_workers=3"):
        tune(config, ignore_status, ray_is_running)
    # The ZeRO stage is frozen when training starts, which this run did not.
    check_config_unchanged(make_config(train={"num_workers": 2, "zero_stage": 3}), *SECTIONS["tune"])


@pytest.mark.usefixtures("ray_4_cpus")
def test_model_that_is_too_large_fails_memory_and_disk_checks(make_config: Callable[..., Config]) -> None:
    hf_config = LlamaConfig(hidden_size=65536, num_hidden_layers=8, intermediate_size=262144)
    config = make_config(train={"num_workers": 1})
    sizer = ModelSizer(hf_config, "sdpa", PackShape(1, 128, 128, 0))
    findings = check_capacity(CheckInput(RunFolder.from_config(config).path, None, config.train, sizer))
    errors = {finding.check for finding in findings if finding.verdict == "error"}
    assert errors == {"memory", "disk", "local disk"}


@pytest.mark.usefixtures("ray_4_cpus")
def test_storage_that_a_node_does_not_see_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All nodes of this cluster share this machine's disk. So this process writes another file than they look for.
    monkeypatch.setattr("instruct_ray.training.capacity.nodes.DRIVER", "elsewhere")
    [report] = probe_nodes(list_alive_nodes(), tmp_path, TrainConfig())
    assert report.problem is not None
    assert "does not see what this machine writes to" in report.problem
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("ray_4_cpus")
def test_storage_that_can_not_be_written_is_reported(large: CheckInput) -> None:
    storage = large.run_dir.parent
    storage.write_text("a file")
    [finding] = check_capacity(replace(large, train=TrainConfig()))
    assert finding.verdict == "error"
    assert finding.message.startswith(f"run.storage: {storage} can't be written: ")


@pytest.mark.usefixtures("ray_4_cpus")
def test_missing_compiler_is_an_error_before_training(large: CheckInput, monkeypatch: pytest.MonkeyPatch) -> None:
    train = TrainConfig(compile=True)
    sizer = ModelSizer(LlamaConfig(), "sdpa", PackShape(1, 128, 128, 0))
    inputs = replace(large, train=train, sizer=sizer)
    assert find_finding("compilers", check_capacity(inputs)).verdict == "ok"
    probe, no_compiler = nodes._probe, {"env_vars": {"CXX": "no-such-compiler"}}
    options = lambda **options: probe.options(**options, runtime_env=no_compiler)  # noqa: E731
    monkeypatch.setattr(nodes, "_probe", SimpleNamespace(options=options))
    finding = find_finding("compilers", check_capacity(inputs))
    assert finding.verdict == "error"
    assert re.match(r"node \S+ has no C\+\+ compiler, which torch needs; install a C and a C\+\+", finding.message)


def test_cpu_that_is_slow_in_bf16_is_a_warning(large: CheckInput) -> None:
    in_bf16, in_fp32 = (replace(large, train=TrainConfig(precision=precision)) for precision in ("bf16", "fp32"))
    slow, fast = (NodeReport(Node(f"id-{name}", name, 4, 0), is_bf16_fast=name == "fast") for name in ("slow", "fast"))
    [finding] = check_precision(in_bf16, [slow, fast])
    assert finding.verdict == "warning"
    assert finding.message.startswith("the CPU of node slow has no instructions for bf16")
    assert [finding.verdict for finding in check_precision(in_bf16, [fast])] == ["ok"]
    assert not list(check_precision(in_fp32, [slow]))
    assert not list(check_precision(replace(large, train=TrainConfig(use_gpu=True)), [slow]))


def test_node_memory_is_known() -> None:
    assert GIB < node_memory() < 2**50


def test_wait_for_placement_ends_when_nodes_arrive_or_time_is_up() -> None:
    command = [sys.executable, "-m", "tests.training.capacity.waiting_probe"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr[-2000:]
    without_node, with_node = json.loads(result.stdout.splitlines()[-1])
    (seconds, num_placed), (seconds_with_node, num_placed_with_node) = without_node, with_node
    assert (num_placed, num_placed_with_node) == (0, 2)
    assert SECONDS <= seconds < SECONDS + 10
    assert seconds_with_node < 60


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_memory_is_known_without_using_a_gpu() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    # nvidia-smi includes memory that the driver reserves.
    assert gpu_memory()[0] == pytest.approx(total, rel=0.05)
