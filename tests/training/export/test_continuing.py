"""A run that goes on from what an earlier one left: its model, its adapter, or its version."""

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
from transformers import AutoConfig, AutoModelForCausalLM

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
from instruct_ray.training.model.requirements import linear_layer_names
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


def losses_of(config: Config) -> list[float]:
    return [json.loads(line)["loss"] for line in RunFolder.from_config(config).metrics_file.read_text().splitlines()]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, triples_file: Path) -> Callable[..., Config]:
    """Configs of one storage."""
    storage = tmp_path_factory.mktemp("runs")

    def make(name: str, **sections: dict[str, Any]) -> Config:
        settings = {"run": {"name": name}, "evidence": EVIDENCE, **sections}
        settings["train"] = TRAIN | sections.get("train", {})
        return tiny.configure(storage, base_folder, triples_file, **settings)

    return make


@pytest.fixture(scope="module")
def first(make: Callable[..., Config]) -> Config:
    """A run that left an adapter, with evidence and a version."""
    config = make("adapter", model={"lora": LORA})
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    evaluate(config, ignore_status, ray_is_running)
    register(config, ignore_status)
    return config


@pytest.fixture(scope="module")
def full(make: Callable[..., Config]) -> Config:
    """A run that left all weights, with a system prompt."""
    config = make("full", data={"system_prompt": "Be brief."}, train={"epochs": 8})
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    return config


def test_an_adapter_is_trained_on(make: Callable[..., Config], first: Config, base_folder: Path) -> None:
    start = RunFolder.from_config(first).model_dir
    config = make("continued", model={"base": str(start), "lora": LORA}, train={"zero_stage": 3, "num_workers": 2})
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    before, after = losses_of(first), losses_of(config)
    assert abs(after[0] - before[-1]) < 0.25 * (before[0] - before[-1])
    assert after[-1] < before[-1]
    folder = RunFolder.from_config(config).model_dir
    record = json.loads((folder / "instruct_ray.json").read_text())
    assert (record["base"], record["form"]) == (str(start), "adapter")
    assert record["base_folder_digest"] == resolve_base_model(first).digest != record["base_digest"]
    assert not (folder / "model.safetensors").exists()
    # It stands on the same base as the one before it, in plain peft, and both of them change its answers.
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder)(IDS).logits
    torch.testing.assert_close(load_for_inference(folder)(IDS).logits, plain, rtol=1e-4, atol=1e-4)
    untuned, earlier = (load_for_inference(each)(IDS).logits for each in (base_folder, start))
    for one, other in itertools.combinations((untuned, earlier, plain), 2):
        assert not torch.allclose(one, other, atol=1e-3)
    # The zero-shot arm is what the run started from.
    evaluate(config, ignore_status, ray_is_running)
    answers = [
        RunFolder.from_config(each).evidence_file.with_name("answers.jsonl").read_text() for each in (first, config)
    ]
    earlier, later = ([json.loads(line) for line in each.splitlines()] for each in answers)
    assert [row["tuned"] for row in earlier] == [row["zero_shot"] for row in later]


@pytest.mark.slow
def test_the_first_step_is_the_adapters_own(make: Callable[..., Config], first: Config) -> None:
    """Without learning nothing changes: what is trained is what was left."""
    start = RunFolder.from_config(first).model_dir
    train = {"epochs": 1, "learning_rate": 1e-12}
    config = make("still", model={"base": str(start), "lora": LORA}, train=train)
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    expected, found = (
        load_file(RunFolder.from_config(each).model_dir / "adapter_model.safetensors") for each in (first, config)
    )
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"rank": 8, "alpha": 8}, r"model\.lora\.rank: 8 here, 4 in the adapter"),
        ({"rank": 4, "alpha": 16}, r"model\.lora\.alpha: 16\.0 here, 8\.0 in the adapter"),
        (LORA | {"targets": ["q_proj"]}, r"model\.lora\.targets: 12 layers, .* are adapted either here or in"),
        (LORA | {"dora": True}, r"model\.lora\.dora: True here, False in"),
        (None, r"model\.lora: model\.base is the adapter .* model\.lora\.merge=true"),
    ],
)
def test_other_adapters_are_refused_by_name(
    first: Config, base_folder: Path, lora: dict[str, Any] | None, words: str
) -> None:
    layers = linear_layer_names(AutoConfig.from_pretrained(base_folder))
    with pytest.raises(InputError, match=words):
        check_adapter_matches(RunFolder.from_config(first).model_dir, lora and LoraConfig.model_validate(lora), layers)


def test_the_same_targets_in_other_words_are_the_same(first: Config, base_folder: Path) -> None:
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers = linear_layer_names(AutoConfig.from_pretrained(base_folder))
    check_adapter_matches(RunFolder.from_config(first).model_dir, LoraConfig(rank=4, alpha=8, targets=names), layers)


def test_they_are_refused_before_a_worker_starts(make: Callable[..., Config], first: Config) -> None:
    config = make("other", model={"base": str(RunFolder.from_config(first).model_dir), "lora": {"rank": 8, "alpha": 8}})
    prepare(config, ray_is_running)
    with pytest.raises(InputError, match=r"model\.lora\.rank: 8 here, 4 in the adapter"):
        tune(config, ignore_status, fail_if_ray_starts)


@pytest.mark.parametrize(
    ("earlier", "prompt"), [("first", "Be brief."), pytest.param("full", None, marks=pytest.mark.slow)]
)
def test_another_contract_is_refused(
    make: Callable[..., Config], earlier: str, prompt: str | None, request: pytest.FixtureRequest
) -> None:
    start = RunFolder.from_config(request.getfixturevalue(earlier)).model
    config = make("never", model={"base": str(start)}, data={"system_prompt": prompt})
    with pytest.raises(InputError, match=r"data\.system_prompt: .* was tuned with contract [0-9a-f]{12} "):
        prepare(config, fail_if_ray_starts)
    assert not RunFolder.from_config(config).path.exists()


@pytest.mark.slow
def test_all_weights_are_trained_on(make: Callable[..., Config], full: Config) -> None:
    start = RunFolder.from_config(full).model_dir
    config = make("full-2", model={"base": str(start)}, data={"system_prompt": "Be brief."})
    prepare(config, ray_is_running)
    assert (
        find_packs(RunFolder.from_config(config)).manifest["contract_digest"]
        == find_packs(RunFolder.from_config(full)).manifest["contract_digest"]
    )
    tune(config, ignore_status, ray_is_running)
    before, after = losses_of(full), losses_of(config)
    assert abs(after[0] - before[-1]) < 0.25 * (before[0] - before[-1])
    assert resolve_base_model(config).initial_model_dir == start


@pytest.mark.slow
def test_a_version_is_trained_on_and_stays_the_same_when_its_alias_moves(
    make: Callable[..., Config], first: Config
) -> None:
    config = make("version", model={"base": "models:/tiny@champion", "lora": LORA}, train={"epochs": 1})
    prepare(config, ray_is_running)
    tune(config, ignore_status, ray_is_running)
    before, after = losses_of(first), losses_of(config)
    assert abs(after[0] - before[-1]) < 0.25 * (before[0] - before[-1])
    evaluate(config, ignore_status, ray_is_running)
    version, _ = register(config, ignore_status)
    assert version.number == "2"
    assert version.tags["base"] == "models:/tiny/1"
    assert version.tags["form"] == "adapter"
    assert ModelRegistry(tracking_uri(config)).aliases("tiny")["champion"] == "2"
    found = resolve_base_model(config)
    assert found.name == "models:/tiny/1"
    assert tune(config, ignore_status, fail_if_ray_starts).already_done
    # One that begins now starts from the new one.
    assert resolve_base_model(make("later", model={"base": "models:/tiny@champion"})).name == "models:/tiny/2"
    assert resolve_base_model(make("later", model={"base": "models:/tiny/1"})).digest == found.digest


def test_a_registered_adapter_answers_from_where_it_was_downloaded(first: Config, tmp_path: Path) -> None:
    registry = ModelRegistry(tracking_uri(first))
    folder = registry.download(registry.resolve("models:/tiny/1"), tmp_path)
    expected = load_for_inference(RunFolder.from_config(first).model_dir)(IDS).logits
    torch.testing.assert_close(load_for_inference(folder)(IDS).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("models:/tiny@nobody", "has no alias nobody"),
        ("models:/tiny/99", "has no version 99"),
        ("models:/other@champion", "no registered model other"),
        ("models:/tiny", "is not a model reference"),
    ],
)
def test_a_version_that_is_not_there_is_named(
    make: Callable[..., Config], first: Config, reference: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        resolve_base_model(make("nowhere", model={"base": reference}))


def test_a_registry_that_never_was_is_named(make_config: Callable[..., Config]) -> None:
    with pytest.raises(InputError, match="nothing is registered under"):
        resolve_base_model(make_config(model={"base": "models:/tiny@champion"}))


def test_an_adapter_whose_base_changed_is_refused(
    make: Callable[..., Config], first: Config, base_folder: Path, tmp_path: Path
) -> None:
    other, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(base_folder, other)
    shutil.copytree(RunFolder.from_config(first).model_dir, adapter)
    record = json.loads((adapter / "instruct_ray.json").read_text())
    (adapter / "instruct_ray.json").write_text(json.dumps(record | {"base_folder": str(other)}))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(other)}))
    config = make("changed", model={"base": str(adapter)})
    assert resolve_base_model(config).adapter == adapter
    load_for_inference(adapter)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"was trained on [0-9a-f]{12}, .*base now holds [0-9a-f]{12}"):
        resolve_base_model(config)
    with pytest.raises(InputError, match=r"was trained on [0-9a-f]{12}, .*base now holds [0-9a-f]{12}"):
        load_for_inference(adapter)
    shutil.rmtree(other)
    with pytest.raises(InputError, match=r"was trained on the model in .*base, which is missing"):
        resolve_base_model(config)


def test_a_run_whose_base_changed_since_it_began_is_refused(
    make: Callable[..., Config], base_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(base_folder, tmp_path / "base")
    config = make("began", model={"base": str(tmp_path / "base")})
    prepare(config, ray_is_running)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    changed = {name: tensor + 1 for name, tensor in weights.items()}
    save_file(changed, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"run began started from .* \([0-9a-f]{12}\), .* now holds [0-9a-f]{12}"):
        tune(config, ignore_status, fail_if_ray_starts)


def test_an_adapter_of_others_is_refused(make: Callable[..., Config], first: Config, tmp_path: Path) -> None:
    shutil.copytree(RunFolder.from_config(first).model_dir, tmp_path / "adapter")
    (tmp_path / "adapter" / "instruct_ray.json").unlink()
    with pytest.raises(InputError, match=r"was not made by instruct_ray: it has no instruct_ray\.json"):
        resolve_base_model(make("others", model={"base": str(tmp_path / "adapter")}))


@pytest.mark.parametrize("reference", ["models:/tiny/1", None])
def test_random_weights_of_what_is_trained_on_are_refused(
    make: Callable[..., Config], first: Config, reference: str | None
) -> None:
    name = reference or str(RunFolder.from_config(first).model_dir)
    with pytest.raises(InputError, match=r"model\.random_init: can.t be combined with"):
        resolve_base_model(make("random", model={"base": name, "random_init": {"num_hidden_layers": 1}}))
