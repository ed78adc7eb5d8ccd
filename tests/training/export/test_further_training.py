"""Runs that train the result of an earlier run further: its model, its adapter, or its registered version."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from instruct_ray.base_model.hf_config import load_hf_config
from instruct_ray.base_model.resolve import resolve_base_model
from instruct_ray.config.schema import Config, LoraConfig
from instruct_ray.data.packs.dataset import find_packs
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.errors import InputError
from instruct_ray.evidence.evaluate import evaluate
from instruct_ray.inference.loading import load_for_inference
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.registry.register import register
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import tracking_uri
from instruct_ray.training.driver.tune import tune
from instruct_ray.training.model.lora import check_adapter_matches
from instruct_ray.training.model.trained_parts import adaptable_layer_names
from tests import tiny
from tests.fakes import fail_if_ray_starts, ignore_status, ray_is_running

pytestmark = pytest.mark.usefixtures("ray_4_cpus")
LORA = {"rank": 4, "alpha": 8}
TRAIN = {
    "epochs": 4,
    "examples_per_step": 12,
    "learning_rate": 1e-2,
    "zero_stage": 2,
    "precision": "fp32",
    "warmup_fraction": 0.0,
}
EVIDENCE = {"num_latency_rows": 1, "num_few_shot": 1}
IDS = torch.tensor([[5, 6, 7, 8]])
MakeRun = Callable[..., Config]


def read_losses(config: Config) -> list[float]:
    return [json.loads(line)["loss"] for line in RunFolder.from_config(config).metrics_file.read_text().splitlines()]


def read_answers(config: Config) -> list[dict[str, Any]]:
    file = RunFolder.from_config(config).evidence_file.with_name("answers.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def update_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(path: Path) -> None:
    weights = load_file(path)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, path, {"format": "pt"})


def model_dir(config: Config) -> Path:
    return RunFolder.from_config(config).model_dir


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, triples_file: Path) -> MakeRun:
    """Makes configs of runs that share a storage."""
    storage = tmp_path_factory.mktemp("runs")

    def make_run(name: str, **sections: dict[str, Any]) -> Config:
        settings = {"run": {"name": name}, "evidence": EVIDENCE, **sections}
        settings["train"] = TRAIN | sections.get("train", {})
        return tiny.configure(storage, base_folder, triples_file, **settings)

    return make_run


@pytest.fixture(scope="module")
def adapter_run(make_run: MakeRun) -> Config:
    """A run that has trained an adapter, evaluated it and registered it."""
    config = make_run("adapter", model={"lora": LORA})
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    evaluate(config, ignore_status, ray_is_running)
    register(config, ignore_status)
    return config


@pytest.fixture(scope="module")
def full_run(make_run: MakeRun) -> Config:
    """A run that has trained all weights, with a system prompt."""
    config = make_run("full", data={"system_prompt": "Be brief."}, train={"epochs": 8})
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    return config


def test_adapter_is_trained_further(make_run: MakeRun, adapter_run: Config, base_folder: Path) -> None:
    start = model_dir(adapter_run)
    config = make_run("continued", model={"base": str(start), "lora": LORA}, train={"zero_stage": 3, "num_workers": 2})
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    before, after = read_losses(adapter_run), read_losses(config)
    assert abs(after[0] - before[-1]) < 0.25 * (before[0] - before[-1])
    assert after[-1] < before[-1]
    folder = model_dir(config)
    metadata = json.loads((folder / "instruct_ray.json").read_text())
    assert (metadata["base"], metadata["form"]) == (str(start), "adapter")
    assert metadata["base_folder_digest"] == resolve_base_model(adapter_run).digest != metadata["base_digest"]
    assert not (folder / "model.safetensors").exists()
    # Both adapters have the same base model, in plain peft too, and each changes its output.
    peft_logits = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder)(IDS).logits
    torch.testing.assert_close(load_for_inference(folder)(IDS).logits, peft_logits, rtol=1e-4, atol=1e-4)
    base_logits, start_logits = (load_for_inference(path)(IDS).logits for path in (base_folder, start))
    for left, right in itertools.combinations((base_logits, start_logits, peft_logits), 2):
        assert not torch.allclose(left, right, atol=1e-3)
    # The zero-shot arm is the model that the run started from.
    evaluate(config, ignore_status, ray_is_running)
    earlier_answers, answers = (read_answers(run) for run in (adapter_run, config))
    earlier, now = (
        [row["answers"][arm]["text"] for row in rows]
        for arm, rows in (("tuned", earlier_answers), ("zero_shot", answers))
    )
    assert earlier == now


@pytest.mark.slow
def test_training_starts_from_the_weights_of_the_adapter(make_run: MakeRun, adapter_run: Config) -> None:
    """With a learning rate of almost zero, the adapter stays as it was."""
    start = model_dir(adapter_run)
    train = {"epochs": 1, "learning_rate": 1e-12}
    config = make_run("unchanged", model={"base": str(start), "lora": LORA}, train=train)
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    expected, adapter = (load_file(model_dir(run) / "adapter_model.safetensors") for run in (adapter_run, config))
    assert expected.keys() == adapter.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(adapter[name], tensor, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("lora", "pattern"),
    [
        ({"rank": 8, "alpha": 8}, r"model\.lora\.rank: 8 here, 4 in the adapter"),
        ({"rank": 4, "alpha": 16}, r"model\.lora\.alpha: 16\.0 here, 8\.0 in the adapter"),
        (LORA | {"targets": ["q_proj"]}, r"model\.lora\.targets: 12 layers are adapted either here or in"),
        (LORA | {"dora": True}, r"model\.lora\.dora: True here, False in"),
        (None, r"model\.lora: model\.base is the adapter .* model\.lora\.merge=true"),
    ],
)
def test_config_that_differs_from_the_adapter_is_refused_by_key(
    adapter_run: Config, base_folder: Path, lora: dict[str, Any] | None, pattern: str
) -> None:
    layers = adaptable_layer_names(load_hf_config(base_folder))
    with pytest.raises(InputError, match=pattern):
        check_adapter_matches(model_dir(adapter_run), lora and LoraConfig.model_validate(lora), layers)


def test_listing_all_targets_equals_the_default(adapter_run: Config, base_folder: Path) -> None:
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers = adaptable_layer_names(load_hf_config(base_folder))
    check_adapter_matches(model_dir(adapter_run), LoraConfig(rank=4, alpha=8, targets=names), layers)


def test_config_that_differs_is_refused_before_ray_starts(make_run: MakeRun, adapter_run: Config) -> None:
    config = make_run("other-rank", model={"base": str(model_dir(adapter_run)), "lora": {"rank": 8, "alpha": 8}})
    prepare(config, ray_is_running)
    with pytest.raises(InputError, match=r"model\.lora\.rank: 8 here, 4 in the adapter"):
        tune(config, ignore_status, fail_if_ray_starts)


@pytest.mark.parametrize(
    ("fixture", "system_prompt"),
    [("adapter_run", "Be brief."), pytest.param("full_run", None, marks=pytest.mark.slow)],
)
def test_model_of_another_contract_is_refused(
    make_run: MakeRun, fixture: str, system_prompt: str | None, request: pytest.FixtureRequest
) -> None:
    start = model_dir(request.getfixturevalue(fixture))
    config = make_run("never", model={"base": str(start)}, data={"system_prompt": system_prompt})
    with pytest.raises(InputError, match=r"data\.system_prompt: .* was tuned with contract [0-9a-f]{12} "):
        prepare(config, fail_if_ray_starts)
    assert not RunFolder.from_config(config).path.exists()


@pytest.mark.slow
def test_all_weights_are_trained_further(make_run: MakeRun, full_run: Config) -> None:
    start = model_dir(full_run)
    config = make_run("full-2", model={"base": str(start)}, data={"system_prompt": "Be brief."})
    prepare(config, ray_is_running)
    packs, earlier_packs = (find_packs(RunFolder.from_config(run)) for run in (config, full_run))
    assert packs.manifest["contract_digest"] == earlier_packs.manifest["contract_digest"]
    tune(config, ignore_status, ray_is_running)
    before, after = read_losses(full_run), read_losses(config)
    assert abs(after[0] - before[-1]) < 0.25 * (before[0] - before[-1])
    assert resolve_base_model(config).initial_model_dir == start


@pytest.mark.slow
def test_version_is_trained_further_and_does_not_follow_its_alias(make_run: MakeRun, adapter_run: Config) -> None:
    config = make_run("version", model={"base": "models:/tiny@champion", "lora": LORA}, train={"epochs": 1})
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    before, after = read_losses(adapter_run), read_losses(config)
    assert abs(after[0] - before[-1]) < 0.25 * (before[0] - before[-1])
    evaluate(config, ignore_status, ray_is_running)
    version = register(config, ignore_status).version
    assert version.number == "2"
    assert version.tags["base"] == "models:/tiny/1"
    assert version.tags["form"] == "adapter"
    assert ModelRegistry(tracking_uri(config)).aliases("tiny")["champion"] == "2"
    base_model = resolve_base_model(config)
    assert base_model.name == "models:/tiny/1"
    assert tune(config, ignore_status, fail_if_ray_starts).already_done
    # A new run starts from the new version.
    assert resolve_base_model(make_run("later", model={"base": "models:/tiny@champion"})).name == "models:/tiny/2"
    assert resolve_base_model(make_run("later", model={"base": "models:/tiny/1"})).digest == base_model.digest


def test_downloaded_adapter_gives_the_same_logits(adapter_run: Config, tmp_path: Path) -> None:
    registry = ModelRegistry(tracking_uri(adapter_run))
    folder = registry.download(registry.resolve("models:/tiny/1"), tmp_path)
    expected = load_for_inference(model_dir(adapter_run))(IDS).logits
    torch.testing.assert_close(load_for_inference(folder)(IDS).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("reference", "pattern"),
    [
        ("models:/tiny@nobody", "has no alias nobody"),
        ("models:/tiny/99", "has no version 99"),
        ("models:/other@champion", "no registered model other"),
        ("models:/tiny", "is not a model reference"),
    ],
)
def test_missing_version_is_reported(make_run: MakeRun, adapter_run: Config, reference: str, pattern: str) -> None:
    with pytest.raises(InputError, match=pattern):
        resolve_base_model(make_run("nowhere", model={"base": reference}))


def test_missing_registry_is_reported(make_config: Callable[..., Config]) -> None:
    with pytest.raises(InputError, match="nothing is registered: no database"):
        resolve_base_model(make_config(model={"base": "models:/tiny@champion"}))


def test_adapter_whose_base_has_changed_is_refused(
    make_run: MakeRun, adapter_run: Config, base_folder: Path, tmp_path: Path
) -> None:
    base_copy, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(base_folder, base_copy)
    shutil.copytree(model_dir(adapter_run), adapter)
    update_json(adapter / "instruct_ray.json", {"base_folder": str(base_copy)})
    update_json(adapter / "adapter_config.json", {"base_model_name_or_path": str(base_copy)})
    config = make_run("changed", model={"base": str(adapter)})
    assert resolve_base_model(config).adapter == adapter
    load_for_inference(adapter)
    change_weights(base_copy / "model.safetensors")
    with pytest.raises(InputError, match=r"was trained on [0-9a-f]{12}, .*base now holds [0-9a-f]{12}"):
        resolve_base_model(config)
    with pytest.raises(InputError, match=r"was trained on [0-9a-f]{12}, .*base now holds [0-9a-f]{12}"):
        load_for_inference(adapter)
    shutil.rmtree(base_copy)
    with pytest.raises(InputError, match=r"was trained on the model in .*base, which is missing"):
        resolve_base_model(config)


def test_run_whose_base_has_changed_is_refused(make_run: MakeRun, base_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(base_folder, tmp_path / "base")
    config = make_run("started", model={"base": str(tmp_path / "base")})
    prepare(config, ray_is_running)
    change_weights(tmp_path / "base" / "model.safetensors")
    with pytest.raises(InputError, match=r"run started started from .* \([0-9a-f]{12}\), .* now holds [0-9a-f]{12}"):
        tune(config, ignore_status, fail_if_ray_starts)


def test_adapter_of_another_program_is_refused(make_run: MakeRun, adapter_run: Config, tmp_path: Path) -> None:
    shutil.copytree(model_dir(adapter_run), tmp_path / "adapter")
    (tmp_path / "adapter" / "instruct_ray.json").unlink()
    with pytest.raises(InputError, match=r"was not made by instruct_ray: it has no instruct_ray\.json"):
        resolve_base_model(make_run("foreign", model={"base": str(tmp_path / "adapter")}))


@pytest.mark.parametrize("reference", ["models:/tiny/1", None])
def test_random_init_of_a_trained_model_is_refused(
    make_run: MakeRun, adapter_run: Config, reference: str | None
) -> None:
    name = reference or str(model_dir(adapter_run))
    with pytest.raises(InputError, match=r"model\.random_init: can.t be combined with"):
        resolve_base_model(make_run("random", model={"base": name, "random_init": {"num_hidden_layers": 1}}))
