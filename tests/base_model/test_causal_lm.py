"""One loader chooses the attention implementation of a model from what its architecture declares."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CLIPConfig,
    Gemma2Config,
    GPTJConfig,
    GPTNeoConfig,
    GptOssConfig,
    PreTrainedConfig,
)

from instruct_ray.base_model.causal_lm import load_causal_lm
from instruct_ray.errors import InputError
from instruct_ray.inference.loading import load_for_inference
from tests.training.tiny_models import CONFIGS, SIZES

# Softcapping, attention sinks, and architectures with attention of their own.
WITHOUT_SDPA: list[PreTrainedConfig] = [
    Gemma2Config(**SIZES),
    GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    GPTJConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=4, rotary_dim=4),
    GPTNeoConfig(vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
    BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4),
]


def save(config: PreTrainedConfig, folder: Path) -> Path:
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config", WITHOUT_SDPA, ids=lambda config: config.model_type)
def test_architecture_without_sdpa_is_loaded_for_training_and_inference(
    config: PreTrainedConfig, tmp_path: Path
) -> None:
    folder = save(config, tmp_path)
    for model in (load_causal_lm(folder, torch.float32), load_for_inference(folder)):
        assert model.config._attn_implementation == "eager"
        assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_other_architectures_use_sdpa_unless_told_otherwise(tmp_path: Path) -> None:
    folder = save(CONFIGS["llama"], tmp_path)
    assert load_for_inference(folder).config._attn_implementation == "sdpa"
    assert load_causal_lm(folder, "auto", attn_implementation="eager").config._attn_implementation == "eager"


def test_folder_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="clip is not a causal language model"):
        load_causal_lm(tmp_path, torch.float32)
