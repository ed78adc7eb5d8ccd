"""Adapters that share a base model answer as each does merged into a copy of its own, in any combination."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, MixtralConfig, OPTConfig, PreTrainedConfig

from instruct_ray.base_model.causal_lm import load_causal_lm
from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.inference.adapters import check_plain, find_row_layers
from instruct_ray.inference.engine import Completion, Engine, SamplingParams, UnsupportedAdapterError, generate_all
from instruct_ray.inference.engines import create_adapter_engine, create_engine
from instruct_ray.inference.shared_engine import SharedEngine
from instruct_ray.inference.transformers_engine import TransformersEngine
from tests.training.tiny_models import SIZES

SERVING = ServingConfig(max_batch_size=16, prefix_cache_tokens=256)
PREFIX = [5 + 7 * number % 50 for number in range(70)]
PROMPTS = [[*PREFIX, 30], [5, 6, 7], [*PREFIX, 31, 32, 33], [9, 10, 11, 12], [*PREFIX, 34, 35]]
SAMPLING = SamplingParams(8, num_top_log_probs=0)
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
ARCHITECTURES: dict[str, PreTrainedConfig | None] = {
    "llama": None,
    "gpt2": GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4),
    # Requests can't join its batches.
    "bloom": BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4),
}


def save_model(folder: Path, base_folder: Path, config: PreTrainedConfig | None) -> Path:
    """A random model; the tiny Llama if there is no config."""
    if config is None:
        return base_folder
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    derive_renderer(base_folder, None).tokenizer.save_pretrained(folder)
    return folder


def add_adapter(base: Path, folder: Path, seed: int, **lora: Any) -> Path:
    """Save a random adapter with a strong effect."""
    torch.manual_seed(seed)
    model = get_peft_model(load_causal_lm(base, "auto"), LoraConfig(**LORA | lora))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    derive_renderer(base, None).tokenizer.save_pretrained(folder)
    return folder


def generate_together(engines: Sequence[Engine]) -> list[list[Completion]]:
    """Ask all engines all prompts at the same time."""
    results: dict[int, list[Completion]] = {}

    def ask(number: int) -> None:
        results[number] = generate_all(engines[number], PROMPTS, SAMPLING)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(engines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[number] for number in range(len(engines))]


def assert_equal(actual: list[Completion], expected: list[Completion]) -> None:
    assert [one.token_ids for one in actual] == [one.token_ids for one in expected]
    log_probs, others = (
        [token.log_probs.chosen for one in completions for token in one.tokens if token.log_probs is not None]
        for completions in (actual, expected)
    )
    assert log_probs == pytest.approx(others, abs=1e-3) and log_probs


@pytest.fixture
def contract(base_folder: Path) -> PromptContract:
    return replace(derive_renderer(base_folder, None).contract, stop_token_id=-1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapters_of_one_base_answer_as_each_does_alone(
    name: str, base_folder: Path, tmp_path: Path, contract: PromptContract
) -> None:
    base = save_model(tmp_path / "base", base_folder, ARCHITECTURES[name])
    folders = [add_adapter(base, tmp_path / "one", 1), add_adapter(base, tmp_path / "two", 2, r=8, use_rslora=True)]
    expected = []
    for folder in [*folders, base]:
        engine = create_engine(folder, contract, SERVING)
        expected.append(generate_all(engine, PROMPTS, SAMPLING))
        engine.close()
    assert len({str([one.token_ids for one in completions]) for completions in expected}) == 3
    adapter_engine = create_adapter_engine(base, contract, SERVING)
    closed: list[str] = []
    shared = SharedEngine(adapter_engine, lambda: closed.append("shared"))
    views = [shared.open_adapter(str(number), folder) for number, folder in enumerate(folders)]
    views.append(shared.open_base())
    for actual, alone in zip(generate_together(views), expected, strict=True):
        assert_equal(actual, alone)
    # One after the other, so that prefixes are kept and used.
    for index, prompt in enumerate(PROMPTS):
        for view, alone in zip(views, expected, strict=True):
            assert_equal(generate_all(view, [prompt], SAMPLING), alone[index : index + 1])
    views[0].close()
    assert_equal(generate_all(views[1], PROMPTS, SAMPLING), expected[1])
    with pytest.raises(RuntimeError, match="the engine has no adapter 0"):
        generate_all(views[0], [[5, 6]], SAMPLING)
    views[2].close()
    assert adapter_engine.is_alive and not closed
    views[1].close()
    assert not adapter_engine.is_alive and closed == ["shared"]


def test_rows_of_several_adapters_are_computed_in_one_pass(
    base_folder: Path, tmp_path: Path, contract: PromptContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_adapter_engine(base_folder, contract, SERVING)
    assert isinstance(engine, TransformersEngine)
    shared = SharedEngine(engine, lambda: None)
    views = [shared.open_adapter("one", add_adapter(base_folder, tmp_path, 1)), shared.open_base()]
    num_adapters: list[int] = []
    step = engine._batch.step

    def count() -> None:
        num_adapters.append(len({row.variant for row in engine._batch.rows}))
        step()

    monkeypatch.setattr(engine._batch, "step", count)
    generate_together(views)
    assert 2 in num_adapters
    for view, prompt in product(views, PROMPTS):
        generate_all(view, [prompt], SAMPLING)
    one, base = engine._variants["one"].prefixes, engine._variants[None].prefixes
    assert one is not base and one.num_tokens and base.num_tokens
    for view in views:
        view.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is "),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices is \[3\]"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is "),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is pissa"),
    ],
)
def test_adapters_that_do_more_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    LoraConfig(**LORA | {"base_model_name_or_path": "x"}).save_pretrained(tmp_path)
    check_plain(tmp_path)
    LoraConfig(**LORA | change).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedAdapterError, match=message):
        check_plain(tmp_path)


def test_layers_that_get_no_rows_are_not_adapted_by_row() -> None:
    experts = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    layers = find_row_layers(AutoModelForCausalLM.from_config(experts))
    assert "model.layers.0.self_attn.q_proj" in layers and not any("experts" in name for name in layers)
    opt = OPTConfig(vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4,
                    word_embed_proj_dim=32)  # fmt: skip
    assert "model.decoder.layers.0.self_attn.q_proj" in find_row_layers(AutoModelForCausalLM.from_config(opt))


def test_adapter_of_another_layer_is_refused_and_leaves_nothing(
    base_folder: Path, tmp_path: Path, contract: PromptContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_adapter_engine(base_folder, contract, SERVING)
    monkeypatch.setattr(engine, "_row_layers", frozenset({"model.layers.0.self_attn.q_proj"}))
    closed: list[str] = []
    shared = SharedEngine(engine, lambda: closed.append("shared"))
    with pytest.raises(UnsupportedAdapterError, match="is not of a layer that is computed row by row"):
        shared.open_adapter("one", add_adapter(base_folder, tmp_path, 1))
    assert closed == ["shared"] and not engine.is_alive
