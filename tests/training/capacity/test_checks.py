"""The checks before a run, on real nodes."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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
from instruct_ray.training.capacity.activations import PackShape
from instruct_ray.training.capacity.checks import check_capacity, raise_if_failed
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

# 8 billion parameters, in the shape of Llama 3.
LLAMA_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)


@pytest.fixture
def large(tmp_path: Path) -> CheckInput:
    """What does not fit on any machine that runs this."""
    train = TrainConfig(num_workers=2, use_gpu=True, zero_stage=1)
    return CheckInput(
        tmp_path / "runs" / "large", None, train, ModelSizer(LLAMA_8B, "flex_attention", PackShape(1, 4096, 1024, 0))
    )


def facts(num_gpus: int, gpu_gib: int, gib: int, number: int = 0) -> NodeReport:
    gpus = (gpu_gib * GIB,) * num_gpus
    return NodeReport(Node(f"id-{number}", f"node-{number}", 64, num_gpus), memory=gib * GIB, gpu_memory=gpus)


def said_of(check: str, findings: list[Finding]) -> Finding:
    [found] = [finding for finding in findings if finding.check == check]
    return found


def test_what_does_not_fit_is_refused_with_what_would(large: CheckInput) -> None:
    findings = list(check_memory(large, [facts(2, 80, 512)], {"id-0": 2}))
    gpu = said_of("GPU memory", findings)
    assert gpu.verdict == "error"
    assert "80 GiB are there; would fit: " in gpu.message
    assert "train.zero_stage=1 train.offload.optimizer=true (" in gpu.message
    assert said_of("memory", findings).verdict == "ok"
    with pytest.raises(InputError, match=r"^GPU memory: a worker needs \d+ GiB \(weights 15 GiB, gradients"):
        raise_if_failed(findings)


def test_more_ranks_or_adapters_make_room(large: CheckInput) -> None:
    eight = replace(large, train=large.train.model_copy(update={"num_workers": 8}))
    assert [each.verdict for each in check_memory(eight, [facts(8, 80, 2048)], {"id-0": 8})] == ["ok", "ok"]
    placed = {"id-0": 2}
    too_small = said_of("GPU memory", list(check_memory(large, [facts(2, 40, 512)], placed)))
    assert "model.lora={rank: 16}" in too_small.message


def test_nothing_fits_where_the_base_alone_does_not(large: CheckInput) -> None:
    gpu = said_of("GPU memory", list(check_memory(large, [facts(2, 4, 16)], {"id-0": 2})))
    assert "no other way of training fits either" in gpu.message


def test_gpus_that_do_not_tell_refuse_nothing(large: CheckInput) -> None:
    found = said_of("GPU memory", list(check_memory(large, [facts(0, 0, 512)], {"id-0": 2})))
    assert found.verdict == "warning"


def test_offloading_fills_the_node(large: CheckInput) -> None:
    offloaded = large.train.model_copy(update={"offload": large.train.offload.model_copy(update={"optimizer": True})})
    job = replace(large, train=offloaded)
    findings = list(check_memory(job, [facts(2, 80, 96)], {"id-0": 2}))
    assert said_of("GPU memory", findings).verdict == "ok"
    memory = said_of("memory", findings)
    assert memory.verdict == "error"
    assert "offloaded optimizer 60 GiB" in memory.message


@pytest.mark.usefixtures("ray_4_cpus")
def test_a_run_that_fits_is_fine(make_config: Callable[..., Config]) -> None:
    config = make_config()
    prepare(config, ray_is_running)
    findings = run_checks(config, ignore_status, ray_is_running, is_timed=True)
    assert {finding.verdict for finding in findings} == {"ok"}
    subjects = ["placement", "storage", "memory", "disk", "local disk", "packs", "steps", "packing proof", "time"]
    assert [finding.check for finding in findings] == subjects
    # Training takes the proof from there.
    assert (RunFolder.from_config(config).path / PACKING_CHECK_FILE).is_file()
    num_steps = build_plan(config, find_packs(RunFolder.from_config(config))).num_steps
    expected = rf"0:00:\d\d for all {num_steps} steps \([\d.]+ s per step, the median of \d+\), checkpoints not counted"
    assert re.fullmatch(expected, said_of("time", findings).message)
    # Neither of what was tried on the storage nor of the short copy is anything left.
    assert list(config.run.storage.iterdir()) == [RunFolder.from_config(config).path]
    assert not (RunFolder.from_config(config).path / "metrics.jsonl").exists()


@pytest.mark.usefixtures("ray_4_cpus")
def test_a_run_that_is_not_prepared_is_examined_too(make_config: Callable[..., Config]) -> None:
    findings = run_checks(make_config(), ignore_status, ray_is_running, is_timed=True)
    assert "not prepared yet" in said_of("packs", findings).message
    assert said_of("memory", findings).verdict == "ok"
    assert said_of("time", findings).message == "not timed: no packs yet"


@pytest.mark.usefixtures("ray_4_cpus")
def test_workers_without_packs_are_told(make_config: Callable[..., Config]) -> None:
    config = make_config(train={"examples_per_step": 1, "num_workers": 3})
    prepare(config, ray_is_running)
    steps = said_of("steps", run_checks(config, ignore_status, ray_is_running, is_timed=False))
    assert steps.verdict == "warning"
    assert "2 worker(s) get no pack: raise train.examples_per_step" in steps.message


@pytest.mark.usefixtures("ray_4_cpus")
def test_an_unplaceable_run_is_refused_and_can_be_changed(make_config: Callable[..., Config]) -> None:
    config = make_config(train={"num_workers": 4})
    prepare(config, ray_is_running)
    with pytest.raises(InputError, match=r"placement: 4 worker\(s\) of 1 CPU beside 1 CPU .* take train.num_workers=3"):
        tune(config, ignore_status, ray_is_running)
    # Another stage is another run, if one has begun: this one has not.
    check_config_unchanged(make_config(train={"num_workers": 2, "zero_stage": 3}), *SECTIONS["tune"])


@pytest.mark.usefixtures("ray_4_cpus")
def test_a_model_that_does_not_fit_is_refused_by_tune(make_config: Callable[..., Config]) -> None:
    wide = {"hidden_size": 65536, "num_hidden_layers": 8, "intermediate_size": 262144}
    config = make_config(train={"num_workers": 1})
    sizer = ModelSizer(LlamaConfig(**wide), "sdpa", PackShape(1, 128, 128, 0))
    findings = check_capacity(CheckInput(RunFolder.from_config(config).path, None, config.train, sizer))
    assert {each.check for each in findings if each.verdict == "error"} == {"memory", "disk", "local disk"}


@pytest.mark.usefixtures("ray_4_cpus")
def test_a_folder_that_only_the_driver_has_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The nodes here share this machine's disk: what they are asked to read is taken away instead.
    monkeypatch.setattr("instruct_ray.training.capacity.nodes.DRIVER", "elsewhere")
    [found] = probe_nodes(list_alive_nodes(), tmp_path)
    assert "does not see what this machine writes to" in found.problem
    assert not list(tmp_path.iterdir())


def test_storage_that_can_not_be_written_is_named(large: CheckInput, ray_4_cpus: None) -> None:
    (large.run.parent.parent / "runs").write_text("a file")
    job = replace(large, train=TrainConfig())
    [found] = check_capacity(job)
    assert found.verdict == "error"
    assert found.message.startswith(f"run.storage: {large.run.parent} can't be written: ")


def test_the_memory_of_this_machine_is_known() -> None:
    assert GIB < node_memory() < 2**50


def test_nodes_on_their_way_are_waited_for_but_not_for_ever() -> None:
    command = [sys.executable, "-m", "tests.training.capacity.waiting_probe"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    (seconds, placed), (seconds_with_node, placed_with_node) = json.loads(done.stdout.splitlines()[-1])
    assert (placed, placed_with_node) == (0, 2)
    assert SECONDS <= seconds < SECONDS + 10
    assert seconds_with_node < 60


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_memory_of_gpus_is_known_without_taking_one() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    # The driver's figure counts what it keeps for itself.
    assert gpu_memory()[0] == pytest.approx(total, rel=0.05)
