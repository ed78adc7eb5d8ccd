"""Which rows of the embedding a LoRA run trains: those of the template's untrained tokens, fixed when it starts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, PhiConfig, PreTrainedTokenizerFast

from instruct_ray.config.schema import Config, LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.data.open_run import OpenRun, open_run
from instruct_ray.errors import InputError
from instruct_ray.run.frozen import freeze_config
from instruct_ray.training.capacity.activations import PackShape
from instruct_ray.training.capacity.model_sizer import ModelSizer
from instruct_ray.training.driver.trained_tokens import record_trained_tokens, resolve_trained_tokens
from instruct_ray.training.model.load import build_meta_model
from instruct_ray.training.model.lora import check_adapter_matches
from tests.training.tiny_models import CONFIGS

CONTROL_TOKENS = ["<|im_start|>", "<|im_end|>"]
LORA = {"rank": 4}
OpenTokenRun = Callable[..., OpenRun]


@pytest.fixture(scope="module")
def untrained_base(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, tokenizer: Any) -> Path:
    """The tiny base without trained rows for the tokens of its chat template."""
    folder = tmp_path_factory.mktemp("untrained")
    model = LlamaForCausalLM.from_pretrained(base_folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(CONTROL_TOKENS)] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def open_token_run(make_config: Callable[..., Config], untrained_base: Path) -> OpenTokenRun:
    def open_with(base: Path = untrained_base, **lora: Any) -> OpenRun:
        return open_run(make_config(model={"base": str(base), "lora": LORA | lora}), "tune")

    return open_with


@pytest.fixture
def token_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    return tuple(sorted(tokenizer.convert_tokens_to_ids(CONTROL_TOKENS)))


def save_adapter(folder: Path, base: Path, token_ids: tuple[int, ...] | None) -> Path:
    """An adapter as an earlier run leaves it, as far as it is looked at here."""
    folder.mkdir()
    indices = None if token_ids is None else {"model.embed_tokens": list(token_ids)}
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 32, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(values | {"trainable_token_indices": indices}))
    save_file({"weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    return folder


def test_untrained_tokens_are_trained_by_default_and_said(
    open_token_run: OpenTokenRun, token_ids: tuple[int, ...]
) -> None:
    run = open_token_run()
    assert resolve_trained_tokens(run) == token_ids
    notice = run.describe_untrained_tokens()
    assert notice is not None
    assert all(token in notice for token in CONTROL_TOKENS)
    assert "their rows of the embedding and the output head are trained" in notice


def test_option_leaves_them_untrained_and_says_what_follows(open_token_run: OpenTokenRun) -> None:
    run = open_token_run(train_untrained_tokens=False)
    assert resolve_trained_tokens(run) == ()
    assert "answers may not stop; set model.lora.train_untrained_tokens=true" in (run.describe_untrained_tokens() or "")


def test_trained_base_and_full_tuning_need_nothing(
    open_token_run: OpenTokenRun, base_folder: Path, make_config: Callable[..., Config], untrained_base: Path
) -> None:
    full = open_run(make_config(model={"base": str(untrained_base)}), "tune")
    for run in (open_token_run(base_folder), full):
        assert resolve_trained_tokens(run) == ()
        assert run.describe_untrained_tokens() is None


def test_started_run_keeps_the_rows_it_started_with(open_token_run: OpenTokenRun, token_ids: tuple[int, ...]) -> None:
    run = open_token_run()
    record_trained_tokens(run, token_ids[:1])
    assert resolve_trained_tokens(run) == token_ids[:1]


def test_run_that_an_older_version_started_trains_no_rows(open_token_run: OpenTokenRun) -> None:
    """Its checkpoints hold none. Only prepared, it may still train them."""
    run = open_token_run()
    freeze_config(run.config, "run", "data", "model")
    assert resolve_trained_tokens(run) != ()
    freeze_config(run.config, "train")
    assert resolve_trained_tokens(run) == ()


def test_head_with_a_bias_is_refused() -> None:
    """peft's rows would drop the bias silently."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    phi = PhiConfig(vocab_size=64, **sizes)
    build_meta_model(phi, LoraConfig(rank=4), TrainConfig(), torch.float32, "sdpa")
    with pytest.raises(InputError, match=r"train_untrained_tokens: single rows of phi can't be trained"):
        build_meta_model(phi, LoraConfig(rank=4), TrainConfig(), torch.float32, "sdpa", (1, 2))


def test_rows_count_as_memory() -> None:
    """Besides the rows, each forward pass makes copies of the embedding that hold them."""
    shape, lora, train = PackShape(1, 64, 8, 64), LoraConfig(rank=4), TrainConfig(precision="fp32")
    config = CONFIGS["llama"]
    plain, rows = (ModelSizer(config, "sdpa", shape, ids).compute_size(lora, train) for ids in ((), (1, 2)))
    num_layers = 1 if config.tie_word_embeddings else 2
    assert rows.num_trainable - plain.num_trainable == num_layers * 2 * config.hidden_size
    assert rows.activation_bytes > plain.activation_bytes


def test_adapter_with_rows_keeps_them(tmp_path: Path, untrained_base: Path, token_ids: tuple[int, ...]) -> None:
    adapter = save_adapter(tmp_path / "adapter", untrained_base, token_ids)
    check_adapter_matches(adapter, LoraConfig(rank=4, targets=("q_proj",)), {"q_proj"})
    with pytest.raises(InputError, match=r"model\.lora\.train_untrained_tokens: false here, but the adapter .* holds"):
        check_adapter_matches(
            adapter, LoraConfig(rank=4, train_untrained_tokens=False, targets=("q_proj",)), {"q_proj"}
        )
