"""The exported model equals the trained one, at every stage and in every format; corrupted exports are detected."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from instruct_ray.config.schema import Config
from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.inference.loading import load_for_inference, load_merged
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.driver.tune import tune
from instruct_ray.training.worker.spec import EXPORT_CHECK_FILE, WEIGHTS_DIR
from tests.fakes import ignore_status, ray_is_running
from tests.training.export.export_probe import CASES, TOKEN_IDS
from tests.training.processes import run_ranks
from tests.training.tiny_models import CONFIGS, EXAMPLES, SIZES, make_model, save_packs

PACK_TOKENS = 32
BASES: dict[str, PreTrainedConfig] = {
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "mixtral": CONFIGS["mixtral"],
}
IDS = torch.tensor([[5, 6, 7, 8, 20, 21]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base models and packs."""
    folder = tmp_path_factory.mktemp("export")
    for name, config in BASES.items():
        make_model(config).save_pretrained(folder / "bases" / name)
    for name in ("tied", "untied"):
        model = make_model(BASES[name])
        with torch.no_grad():
            model.get_input_embeddings().weight[list(TOKEN_IDS)] = 0
            model.get_output_embeddings().weight[list(TOKEN_IDS)] = 0
        model.save_pretrained(folder / "bases" / f"{name} untrained")
    save_packs(folder / "packs", list(pack_examples(EXAMPLES, PACK_TOKENS)), PACK_TOKENS)
    return folder


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        (3, "fp32"),
        *(
            pytest.param(stage, precision, marks=pytest.mark.slow)
            for stage, precision in ((0, "fp32"), (1, "fp32"), (2, "fp32"), (2, "bf16"), (3, "bf16"))
        ),
    ],
)
def test_exported_model_equals_trained_model(stage: int, precision: str, folder: Path) -> None:
    for case in CASES:
        # Of another stage: its check file would count as this stage's.
        shutil.rmtree(folder / case, ignore_errors=True)
    results = run_ranks("tests.training.export.export_probe", 2, folder, str(stage), precision)[0]
    for case, result in results.items():
        assert (result["problem"], result["export_problem"]) == (None, None), case
        assert result["was_removed"], case
        assert result["is_model_restored"], case
        assert result["is_finite"], case
        assert not result["files_left_by_corrupted"], case
        check = result["check"]
        lora = CASES[case][1]
        assert check["form"] == ("full" if lora is None else "merged" if lora.merge else "adapter")
        assert check["num_tensors"] > 0
        if check["form"] != "merged":
            # The same kernels on the same numbers.
            assert check["logit_difference"] == 0, case
    for case in ("adapter", "dora", "rows of tied", "rows of untied"):
        # A run that trains the adapter further starts from this run's weights.
        loss, loss_after_reload = results[case]["losses_before_and_after_reload"]
        assert loss_after_reload == loss, case
    if precision == "fp32":
        assert_corruption_is_detected(results)
    assert_plain_libraries_load(folder)
    assert_rows_are_trained(folder)


def assert_corruption_is_detected(results: dict[str, Any]) -> None:
    for case in ("tied", "adapter", "merged"):
        problems = results[case]["corrupted_problems"]
        format = {"tied": "full"}.get(case, case)
        prefix = f"the exported model ({format}) is not the trained one: "
        assert all(problem.startswith(prefix) for problem in problems.values())
        assert "differs by up to 1.0e-02" in problems["changed"]
        # transformers and peft initialize a missing tensor, here with the right values: ones or zeros.
        expected = "the adapter has 41 tensors of 42" if case == "adapter" else "model.norm.weight is missing"
        assert expected in problems["dropped"]
        assert "its logits of a row differ by" in problems["gathered"]
    assert "its logits of a row differ by" in results["merged"]["corrupted_problems"]["not merged"]


def assert_plain_libraries_load(folder: Path) -> None:
    """Load the exported models with plain transformers and peft."""
    for case in ("tied", "untied", "experts", "merged"):
        _, info = AutoModelForCausalLM.from_pretrained(folder / case / "weights", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (case, info)
    for case, base in (("adapter", "tied"), ("dora", "untied")):
        base_model = AutoModelForCausalLM.from_pretrained(folder / "bases" / base)
        base_logits = base_model(IDS).logits
        adapted_logits = PeftModel.from_pretrained(base_model, folder / case / "weights")(IDS).logits
        assert (adapted_logits - base_logits).norm() > 0.05 * base_logits.norm(), case
        inference_logits = load_for_inference(folder / case / "weights")(IDS).logits
        torch.testing.assert_close(inference_logits, adapted_logits, rtol=1e-4, atol=1e-4)


def assert_rows_are_trained(folder: Path) -> None:
    """Each adapter holds one row per token and layer, plain peft loads them, and no other row changes."""
    for base, num_layers in (("tied", 1), ("untied", 2)):
        base_dir, adapter_dir = folder / "bases" / f"{base} untrained", folder / f"rows of {base}" / "weights"
        rows = [name for name in load_file(adapter_dir / "adapter_model.safetensors") if "trainable_tokens" in name]
        assert len(rows) == num_layers
        base_model = AutoModelForCausalLM.from_pretrained(base_dir)
        expected = PeftModel.from_pretrained(base_model, adapter_dir)(IDS).logits
        merged = load_for_inference(adapter_dir)
        torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)
        layers = ("get_input_embeddings", "get_output_embeddings")
        for before, after in [
            [getattr(model, layer)().weight for model in (AutoModelForCausalLM.from_pretrained(base_dir), merged)]
            for layer in layers
        ]:
            changed = (before != after).any(dim=1).nonzero().flatten().tolist()
            assert changed == list(TOKEN_IDS), (base, changed)


def test_merged_model_equals_base_with_adapter(folder: Path, tmp_path: Path) -> None:
    """In fp32 merging rounds the weights once more, nothing else."""
    adapter_dir = folder / "adapter" / "weights"
    load_merged(adapter_dir).save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(folder / "bases" / "tied")
    with torch.no_grad():
        adapted_logits = PeftModel.from_pretrained(base, adapter_dir)(IDS).logits
        merged_logits = AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits
    assert (merged_logits - adapted_logits).norm() < 1e-5 * adapted_logits.norm()


@pytest.mark.usefixtures("ray_4_cpus")
def test_run_verifies_its_export_and_leaves_one_model(make_config: Callable[..., Config]) -> None:
    train = {"zero_stage": 3, "examples_per_step": 12, "epochs": 2, "checkpoint_every": 2, "learning_rate": 1e-2}
    config = make_config(model={"lora": {"rank": 4, "merge": True}}, train=train)
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    folder = RunFolder.from_config(config)
    check = json.loads((folder.path / EXPORT_CHECK_FILE).read_text())
    assert check["form"] == "merged"
    assert check["logit_difference"] <= check["logit_tolerance"]
    assert json.loads((folder.model_dir / "instruct_ray.json").read_text())["form"] == "merged"
    assert (folder.model_dir / "model.safetensors").is_file()
    assert not (folder.model_dir / "adapter_config.json").exists()
    assert not (folder.path / WEIGHTS_DIR).exists()
    assert AutoModelForCausalLM.from_pretrained(folder.model_dir)(IDS).logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_4_cpus")
def test_failed_export_ends_the_run_at_its_first_checkpoint(make_config: Callable[..., Config]) -> None:
    train = {"examples_per_step": 12, "epochs": 4, "checkpoint_every": 2, "max_failures": 3}
    config = make_config(train=train)
    folder = RunFolder.from_config(config)
    prepare(config, ray_is_running)
    # A file where the weights folder has to be created.
    (folder.path / WEIGHTS_DIR).touch()
    with pytest.raises(RuntimeError, match=r"training stopped: the exported model \(full\) is not the trained one"):
        tune(config, ignore_status, ray_is_running)
    records = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert not folder.model_dir.exists()
    assert list(folder.ray_train_dir.glob("checkpoint-*"))
