"""Real training on a real cluster, at other stages and numbers of workers, and a folder that plain libraries load."""

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
from tests.fakes import no_start, say_nothing
from tests.training.tiny_models import CONFIGS

pytestmark = pytest.mark.usefixtures("ray_4_cpus")
STEPS = {"examples_per_step": 12, "checkpoint_every": 4}


def metrics_of(config: Config) -> list[dict[str, float]]:
    return [json.loads(line) for line in RunFolder.from_config(config).metrics_file.read_text().splitlines()]


def proof_of(config: Config) -> PackingCheck:
    return PackingCheck.model_validate_json((RunFolder.from_config(config).path / PACKING_CHECK_FILE).read_text())


def weights_of(config: Config) -> dict[str, torch.Tensor]:
    return load_file(RunFolder.from_config(config).model_dir / "model.safetensors")


def test_the_loss_falls(tuned: Config) -> None:
    losses = [line["loss"] for line in metrics_of(tuned)]
    assert losses[-1] < 0.8 * losses[0]


def test_every_row_is_trained_once_per_epoch(tuned: Config) -> None:
    num_train, num_trained = (
        find_packs(RunFolder.from_config(tuned)).num_examples,
        find_packs(RunFolder.from_config(tuned)).manifest["num_trained_tokens"],
    )
    lines = metrics_of(tuned)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert sum(line["examples"] for line in lines) == num_train * tuned.train.epochs
    assert sum(line["num_trained"] for line in lines) == num_trained * tuned.train.epochs


def test_two_checkpoints_are_kept(tuned: Config) -> None:
    assert len(list(RunFolder.from_config(tuned).ray_train_dir.glob("checkpoint-*"))) == 2


def test_plain_transformers_loads_the_model(tuned: Config) -> None:
    folder = RunFolder.from_config(tuned).model_dir
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("How bad is it?", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] > ids.shape[1]
    assert load_renderer(folder).contract.digest == find_packs(RunFolder.from_config(tuned)).manifest["contract_digest"]


def test_a_finished_run_does_nothing(tuned: Config) -> None:
    before = RunFolder.from_config(tuned).metrics_file.stat().st_mtime_ns
    assert tune(tuned, say_nothing, no_start).already_done
    assert RunFolder.from_config(tuned).metrics_file.stat().st_mtime_ns == before


def test_a_changed_config_is_refused_by_key(tuned: Config) -> None:
    changed = tuned.model_copy(update={"train": tuned.train.model_copy(update={"learning_rate": 2e-3})})
    with pytest.raises(InputError, match=r"train\.learning_rate was 0\.01, now 0\.002"):
        tune(changed, say_nothing, no_start)


def test_a_checkpoint_of_another_contract_is_refused(tuned: Config) -> None:
    checkpoints = RunFolder.from_config(tuned).ray_train_dir
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        keeper = Checkpointer(checkpoints, "0" * 64, rank=0, world_size=1, device=torch.device("cpu"))
        with pytest.raises(InputError, match=r"follows contract [0-9a-f]{12}, the packs 000000000000; take another"):
            keeper.find_resume_point(zero_stage=2)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("stage", "before", "after"),
    [(2, 2, 1), (1, 1, 2), (3, 2, 3), (0, 2, 1)],
)
@pytest.mark.slow
def test_a_run_continues_on_another_number_of_workers(
    make_config: Callable[..., Config], stage: int, before: int, after: int
) -> None:
    train = {
        **STEPS,
        "epochs": 2,
        "zero_stage": stage,
        "precision": "fp32",
        "learning_rate": 1e-3,
        "checkpoint_every": 2,
    }
    whole = make_config(run={"name": "whole"}, train={**train, "num_workers": after})
    prepare(whole, no_start)
    tune(whole, say_nothing, no_start)

    stopped = make_config(run={"name": "resized"}, train={**train, "num_workers": before})
    prepare(stopped, no_start)
    tune(stopped, say_nothing, no_start)
    folder = RunFolder.from_config(stopped)
    # As if it had been killed after its first checkpoint of the two that are kept.
    shutil.rmtree(folder.model_dir)
    shutil.rmtree(max(folder.ray_train_dir.glob("checkpoint-*")))
    resized = make_config(run={"name": "resized"}, train={**train, "num_workers": after})
    tune(resized, say_nothing, no_start)

    losses = [[line["loss"] for line in metrics_of(config)] for config in (whole, resized)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert [line["step"] for line in metrics_of(resized)] == list(range(1, len(losses[0]) + 1))
    expected, found = weights_of(whole), weights_of(resized)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)
    assert not (folder.ray_train_dir / ".universal").exists()


def test_tuning_before_preparing_is_refused(make_config: Callable[..., Config]) -> None:
    with pytest.raises(InputError, match=r"no prepared packs; run `instruct-ray prepare`"):
        tune(make_config(), say_nothing, no_start)


def test_the_proof_is_recorded(tuned: Config) -> None:
    record = proof_of(tuned)
    assert (record.path, record.implementation, record.num_layers) == ("packed", "tree_chunks", 2)
    assert record.loss_difference is not None
    assert record.loss_difference <= record.loss_tolerance


def other_base(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> str:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_sliding_windows_are_packed_and_sharded(
    make_config: Callable[..., Config], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    gemma = CONFIGS["gemma3"].to_dict() | {"vocab_size": len(tokenizer)}
    base = other_base(tmp_path / "gemma3", Gemma3TextConfig(**gemma), tokenizer)
    train = {**STEPS, "epochs": 1, "zero_stage": 3, "num_workers": 2}
    config = make_config(model={"base": base}, train=train)
    prepare(config, no_start)
    tune(config, say_nothing, no_start)
    record = proof_of(config)
    assert record.path == "packed"
    assert record.window == 4 < record.longest
    assert (
        sum(line["examples"] for line in metrics_of(config)) == find_packs(RunFolder.from_config(config)).num_examples
    )


def test_what_packs_would_change_is_trained_padded_and_said(
    make_config: Callable[..., Config],
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mixtral = CONFIGS["mixtral"].to_dict() | {"vocab_size": len(tokenizer), "output_router_logits": True}
    base = other_base(tmp_path / "mixtral", MixtralConfig(**mixtral), tokenizer)
    config = make_config(model={"base": base}, train={**STEPS, "epochs": 1})
    prepare(config, no_start)
    tune(config, say_nothing, no_start)
    record = proof_of(config)
    assert record.path == "padded"
    assert "auxiliary loss" in record.reason
    assert f"training padded instead of packed: {record.reason}" in caplog.text
    lines = metrics_of(config)
    assert sum(line["examples"] for line in lines) == find_packs(RunFolder.from_config(config)).num_examples
    # Shared prompts are computed once per example, and padding on top.
    assert sum(line["num_computed_tokens"] for line in lines) > sum(line["num_tokens"] for line in lines) * 0.9


@pytest.mark.slow
def test_zero_3_on_three_ranks_equals_zero_0_on_one(make_config: Callable[..., Config]) -> None:
    found = []
    for name, stage, num_workers in (("one", 0, 1), ("three", 3, 3)):
        train = {**STEPS, "epochs": 2, "zero_stage": stage, "num_workers": num_workers, "precision": "fp32"}
        config = make_config(run={"name": name}, train=train)
        prepare(config, no_start)
        tune(config, say_nothing, no_start)
        found.append(config)
    expected, sharded = (weights_of(config) for config in found)
    assert expected.keys() == sharded.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(sharded[name], tensor, rtol=1e-4, atol=1e-5)
    losses = [[line["loss"] for line in metrics_of(config)] for config in found]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
