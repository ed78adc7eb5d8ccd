"""Training on a Ray cluster: ZeRO stages, numbers of workers, and a model folder that plain transformers loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from instruct_ray.config.schema import Config
from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.checkpoint.checkpointer import Checkpointer
from instruct_ray.training.driver.tune import tune
from instruct_ray.training.model.packing_check import PackingCheck
from instruct_ray.training.worker.spec import PACKING_CHECK_FILE
from tests.fakes import ignore_status, ray_is_running
from tests.training.tiny_models import CONFIGS

pytestmark = pytest.mark.usefixtures("ray_4_cpus")
STEPS = {"examples_per_step": 12, "checkpoint_every": 4}


def read_metrics(config: Config) -> list[dict[str, float]]:
    return [json.loads(line) for line in RunFolder.from_config(config).metrics_file.read_text().splitlines()]


def read_packing_check(config: Config) -> PackingCheck:
    return PackingCheck.model_validate_json((RunFolder.from_config(config).path / PACKING_CHECK_FILE).read_text())


def load_weights(config: Config) -> dict[str, torch.Tensor]:
    return load_file(RunFolder.from_config(config).model_dir / "model.safetensors")


def test_loss_falls(tuned: Config) -> None:
    losses = [line["loss"] for line in read_metrics(tuned)]
    assert losses[-1] < 0.8 * losses[0]


def test_every_row_is_trained_once_per_epoch(tuned: Config) -> None:
    packs = find_packs(RunFolder.from_config(tuned))
    lines = read_metrics(tuned)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert sum(line["examples"] for line in lines) == packs.num_examples * tuned.train.epochs
    assert sum(line["num_trained"] for line in lines) == packs.manifest["num_trained_tokens"] * tuned.train.epochs


def test_only_two_checkpoints_are_kept(tuned: Config) -> None:
    assert len(list(RunFolder.from_config(tuned).ray_train_dir.glob("checkpoint-*"))) == 2


def test_plain_transformers_loads_the_model(tuned: Config) -> None:
    folder = RunFolder.from_config(tuned).model_dir
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("How bad is it?", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] > ids.shape[1]
    assert load_renderer(folder).contract.digest == find_packs(RunFolder.from_config(tuned)).manifest["contract_digest"]


def test_finished_run_is_not_trained_again(tuned: Config) -> None:
    metrics_file = RunFolder.from_config(tuned).metrics_file
    modified_at = metrics_file.stat().st_mtime_ns
    assert tune(tuned, ignore_status, ray_is_running).already_done
    assert metrics_file.stat().st_mtime_ns == modified_at


def test_changed_config_is_refused_by_key(tuned: Config) -> None:
    changed = tuned.model_copy(update={"train": tuned.train.model_copy(update={"learning_rate": 2e-3})})
    with pytest.raises(InputError, match=r"train\.learning_rate was 0\.01, now 0\.002"):
        tune(changed, ignore_status, ray_is_running)


def test_checkpoint_of_another_contract_is_refused(tuned: Config) -> None:
    checkpoint_dir = RunFolder.from_config(tuned).ray_train_dir
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        checkpointer = Checkpointer(checkpoint_dir, "0" * 64, 2, rank=0, world_size=1, device=torch.device("cpu"))
        with pytest.raises(
            InputError, match=r"follows contract [0-9a-f]{12}, the packs follow contract 000000000000; use"
        ):
            checkpointer.find_resume_point(zero_stage=2)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("zero_stage", "num_workers", "num_workers_resumed"), [(2, 2, 1), (1, 1, 2), (3, 2, 3), (0, 2, 1)]
)
@pytest.mark.slow
def test_run_resumes_with_another_number_of_workers(
    make_config: Callable[..., Config], zero_stage: int, num_workers: int, num_workers_resumed: int
) -> None:
    train = {
        **STEPS,
        "epochs": 2,
        "zero_stage": zero_stage,
        "precision": "fp32",
        "learning_rate": 1e-3,
        "checkpoint_every": 2,
    }
    uninterrupted = make_config(run={"name": "uninterrupted"}, train={**train, "num_workers": num_workers_resumed})
    prepare(uninterrupted, ray_is_running)
    tune(uninterrupted, ignore_status, ray_is_running)

    interrupted = make_config(run={"name": "resized"}, train={**train, "num_workers": num_workers})
    prepare(interrupted, ray_is_running)
    tune(interrupted, ignore_status, ray_is_running)
    folder = RunFolder.from_config(interrupted)
    # As if the run had been killed after the first of the two checkpoints that are kept.
    shutil.rmtree(folder.model_dir)
    shutil.rmtree(max(folder.ray_train_dir.glob("checkpoint-*")))
    resumed = make_config(run={"name": "resized"}, train={**train, "num_workers": num_workers_resumed})
    tune(resumed, ignore_status, ray_is_running)

    expected_losses, losses = ([line["loss"] for line in read_metrics(run)] for run in (uninterrupted, resumed))
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    assert [line["step"] for line in read_metrics(resumed)] == list(range(1, len(expected_losses) + 1))
    weights = load_weights(resumed)
    for name, expected in load_weights(uninterrupted).items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-3, atol=1e-5)
    assert not (folder.ray_train_dir / ".universal").exists()


def test_tuning_before_preparing_is_refused(make_config: Callable[..., Config]) -> None:
    with pytest.raises(InputError, match=r"no prepared packs; run `instruct-ray prepare`"):
        tune(make_config(), ignore_status, ray_is_running)


def test_packing_check_is_recorded(tuned: Config) -> None:
    check = read_packing_check(tuned)
    assert (check.path, check.attn_implementation, check.num_layers) == ("packed", "tree_chunks", 2)
    assert check.loss_difference is not None
    assert check.loss_difference <= check.loss_tolerance


def save_base(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> str:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_model_with_sliding_window_is_packed_and_sharded(
    make_config: Callable[..., Config], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    gemma = CONFIGS["gemma3"].to_dict() | {"vocab_size": len(tokenizer)}
    base = save_base(tmp_path / "gemma3", Gemma3TextConfig(**gemma), tokenizer)
    train = {**STEPS, "epochs": 1, "zero_stage": 3, "num_workers": 2}
    config = make_config(model={"base": base}, train=train)
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    check = read_packing_check(config)
    assert check.path == "packed"
    assert check.window == 4 < check.longest
    assert (
        sum(line["examples"] for line in read_metrics(config)) == find_packs(RunFolder.from_config(config)).num_examples
    )


def test_model_that_can_not_be_packed_is_trained_padded(
    make_config: Callable[..., Config],
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mixtral = CONFIGS["mixtral"].to_dict() | {"vocab_size": len(tokenizer), "output_router_logits": True}
    base = save_base(tmp_path / "mixtral", MixtralConfig(**mixtral), tokenizer)
    config = make_config(model={"base": base}, train={**STEPS, "epochs": 1})
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    check = read_packing_check(config)
    assert check.path == "padded"
    assert "auxiliary router loss" in check.reason
    assert f"training with padding instead of packs: {check.reason}" in caplog.text
    lines = read_metrics(config)
    assert sum(line["examples"] for line in lines) == find_packs(RunFolder.from_config(config)).num_examples
    # Shared prompts are computed once per example, and padding is computed too.
    assert sum(line["num_computed_tokens"] for line in lines) > sum(line["num_tokens"] for line in lines) * 0.9


@pytest.mark.slow
def test_zero_3_on_three_ranks_equals_zero_0_on_one(make_config: Callable[..., Config]) -> None:
    runs = []
    for name, zero_stage, num_workers in (("one", 0, 1), ("three", 3, 3)):
        train = {**STEPS, "epochs": 2, "zero_stage": zero_stage, "num_workers": num_workers, "precision": "fp32"}
        config = make_config(run={"name": name}, train=train)
        prepare(config, ray_is_running)
        tune(config, ignore_status, ray_is_running)
        runs.append(config)
    expected, sharded = (load_weights(run) for run in runs)
    assert expected.keys() == sharded.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(sharded[name], tensor, rtol=1e-4, atol=1e-5)
    expected_losses, losses = ([line["loss"] for line in read_metrics(run)] for run in runs)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
