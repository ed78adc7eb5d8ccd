"""What is exported is the trained model, at every stage and in every form; what is not is caught."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from instruct_ray.config.schema import Config
from instruct_ray.data.packs.tree import pack_examples
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.inference.loading import load_for_inference, load_merged
from instruct_ray.run.folder import RunFolder
from instruct_ray.training.driver.tune import tune
from instruct_ray.training.worker.spec import EXPORT_CHECK_FILE
from tests.fakes import ignore_status, ray_is_running
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
    """Bases and packs."""
    folder = tmp_path_factory.mktemp("export")
    for name, config in BASES.items():
        make_model(config).save_pretrained(folder / "bases" / name)
    packs = list(pack_examples(EXAMPLES, PACK_TOKENS))
    save_packs(folder / "packs", packs, PACK_TOKENS)
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
def test_what_is_exported_is_the_trained_model(stage: int, precision: str, folder: Path) -> None:
    for case in ("tied", "untied", "experts", "adapter", "dora", "merged"):
        # What another stage left: it would count as read back.
        shutil.rmtree(folder / case, ignore_errors=True)
    found = run_ranks("tests.training.export.export_probe", 2, folder, str(stage), precision)[0]
    for case, result in found.items():
        assert (result["problem"], result["export"]) == ("", ""), case
        assert result["was_removed"], case
        assert result["is_as_before"], case
        assert result["is_finite"], case
        assert not result["left_by_broken"], case
        check = result["check"]
        assert check["form"] == {"adapter": "adapter", "dora": "adapter", "merged": "merged"}.get(case, "full")
        assert check["num_tensors"] > 0
        if case != "merged":
            # The same kernels on the same numbers.
            assert check["logit_difference"] == 0, case
    for case in ("adapter", "dora"):
        # A run that goes on from the adapter begins where this one is.
        left, found_again = found[case]["continued"]
        assert found_again == left, case
    if precision == "fp32":
        assert_caught(found)
    assert_loads(folder)


def assert_caught(found: dict[str, Any]) -> None:
    for case in ("tied", "adapter", "merged"):
        said = found[case]["broken"]
        form = {"tied": "full"}.get(case, case)
        assert all(text.startswith(f"the exported model ({form}) is not the trained one: ") for text in said.values())
        assert "differs, by 1.0e-02 at most" in said["changed"]
        # It would begin with the right value, ones or zeros.
        expected = "the adapter has 41 tensors of 42" if case == "adapter" else "model.norm.weight is missing"
        assert expected in said["dropped"]
        assert "its logits of a row differ by" in said["gathered"]
    assert "its logits of a row differ by" in found["merged"]["broken"]["not merged"]


def assert_loads(folder: Path) -> None:
    """What was exported, in plain libraries."""
    for case in ("tied", "untied", "experts", "merged"):
        _, info = AutoModelForCausalLM.from_pretrained(folder / case / "weights", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (case, info)
    for case, base in (("adapter", "tied"), ("dora", "untied")):
        plain = AutoModelForCausalLM.from_pretrained(folder / "bases" / base)
        before = plain(IDS).logits
        adapted = PeftModel.from_pretrained(plain, folder / case / "weights")(IDS).logits
        assert (adapted - before).norm() > 0.05 * before.norm(), case
        torch.testing.assert_close(
            load_for_inference(folder / case / "weights")(IDS).logits, adapted, rtol=1e-4, atol=1e-4
        )


def test_a_merged_model_answers_as_base_and_adapter(folder: Path, tmp_path: Path) -> None:
    """fp32: the weights are rounded once more, nothing else."""
    source = folder / "adapter" / "weights"
    load_merged(source).save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(folder / "bases" / "tied")
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(base, source)(IDS).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits
    assert (merged - adapted).norm() < 1e-5 * adapted.norm()


def lines_of(config: Config) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder.from_config(config).metrics_file.read_text().splitlines()]


@pytest.mark.usefixtures("ray_4_cpus")
def test_a_run_is_read_back_at_its_first_checkpoint_and_leaves_one_model(make_config: Callable[..., Config]) -> None:
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
    assert not (folder.path / ".weights").exists()
    assert AutoModelForCausalLM.from_pretrained(folder.model_dir)(IDS).logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_4_cpus")
def test_an_export_that_fails_ends_the_run_at_its_first_checkpoint(make_config: Callable[..., Config]) -> None:
    train = {"examples_per_step": 12, "epochs": 4, "checkpoint_every": 2, "max_failures": 3}
    config = make_config(train=train)
    prepare(config, ray_is_running)
    # No folder can be made here.
    (RunFolder.from_config(config).path / ".weights").touch()
    with pytest.raises(RuntimeError, match=r"training stopped: the exported model \(full\) is not the trained one"):
        tune(config, ignore_status, ray_is_running)
    assert [line["step"] for line in lines_of(config)] == [1, 2]
    assert not RunFolder.from_config(config).model_dir.exists()
    assert list(RunFolder.from_config(config).ray_train_dir.glob("checkpoint-*"))
