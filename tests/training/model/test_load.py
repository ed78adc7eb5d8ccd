"""Which bases are packed, which are not and why, and how each attends."""

import re
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import (
    BloomConfig,
    CLIPConfig,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    xLSTMConfig,
)

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import TrainConfig
from instruct_ray.errors import InputError
from instruct_ray.training.model.load import load_model
from instruct_ray.training.model.requirements import (
    aux_loss_coef,
    check_lora_targets,
    default_attn_implementation,
    load_trainable_config,
    packed_attn_implementation,
    packing_incompatibility,
)
from tests.training.tiny_models import CONFIGS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 48,
    "long_factor": [2.0] * 48,
    "original_max_position_embeddings": 4096,
}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MambaConfig(), "mamba: recurrent layers"),
        (FalconH1Config(), "falcon_h1: recurrent layers"),
        (Qwen3NextConfig(), "qwen3_next: layers of linear_attention"),
        (RecurrentGemmaConfig(), "recurrent_gemma: recurrent layers"),
        (Llama4TextConfig(), "llama4_text: layers of chunked_attention.*attention_chunk_size"),
        (MixtralConfig(output_router_logits=True), "mixtral: an auxiliary loss of the router"),
        (BloomConfig(), "bloom: positions counted by place"),
        (FalconConfig(alibi=True), "falcon: positions counted by place"),
        (GPTNeoConfig(), "gpt_neo: local attention"),
        (Gemma3TextConfig(use_bidirectional_attention=True), "gemma3_text: attention to later tokens"),
        (Phi3Config(rope_parameters=LONGROPE), "phi3: longrope positions.*beyond 4096"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_what_packs_would_change_is_named(config: PreTrainedConfig, words: str) -> None:
    obstacle = packing_incompatibility(config, max_tokens=8192)
    assert obstacle is not None
    assert re.match(words, obstacle), obstacle


@pytest.mark.parametrize(
    "config",
    [*CONFIGS.values(), Qwen3MoeConfig(), GptOssConfig(), Phi3Config(rope_parameters=LONGROPE)],
    ids=lambda config: config.model_type,
)
def test_everything_else_is_packed(config: PreTrainedConfig) -> None:
    assert packing_incompatibility(config, max_tokens=4096) is None


def test_attention_follows_device_and_architecture() -> None:
    configs = {
        "llama": LlamaConfig(),
        "llama-dropout": LlamaConfig(attention_dropout=0.1),
        "gemma2": Gemma2Config(),
        "gpt2": GPT2Config(),
    }
    assert {name: packed_attn_implementation(config, CPU) for name, config in configs.items()} == {
        "llama": "tree_chunks",
        "llama-dropout": "tree_chunks",
        # SDPA has no softcapping.
        "gemma2": "eager",
        "gpt2": "tree_chunks",
    }
    assert {name: packed_attn_implementation(config, CUDA) for name, config in configs.items()} == {
        "llama": "flex_attention",
        "llama-dropout": "sdpa",
        "gemma2": "flex_attention",
        "gpt2": "sdpa",
    }
    assert default_attn_implementation(Gemma2Config()) == "eager"


def test_the_auxiliary_loss_counts_where_the_configuration_asks_for_it() -> None:
    assert aux_loss_coef(MixtralConfig(output_router_logits=True, router_aux_loss_coef=0.02)) == 0.02
    assert aux_loss_coef(MixtralConfig(router_aux_loss_coef=0.02)) == 0
    assert aux_loss_coef(LlamaConfig()) == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CLIPConfig(), "model.base: clip is no causal language model"),
        (xLSTMConfig(), "model.base: the forward pass of xlstm takes no attention_mask, logits_to_keep"),
        (Gemma3TextConfig(sliding_window=None), "no sliding_window"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_what_cannot_be_trained_is_refused(config: PreTrainedConfig, words: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=words):
        load_trainable_config(tmp_path)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_lora_targets_are_checked_by_name(name: str) -> None:
    known = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"]}[name]
    check_lora_targets(CONFIGS[name], known)
    with pytest.raises(InputError, match=rf"model\.lora\.targets: {name} has no lm_head, query, only .*{known[0]}"):
        check_lora_targets(CONFIGS[name], [*known, "query", "lm_head"])


def load(base: Path, lora: LoraConfig | None = None, **train: object) -> torch.nn.Module:
    return load_model(base, lora, TrainConfig.model_validate(train), torch.float32, 0, "sdpa")


def test_adapters_go_where_they_are_asked_to(base_folder: Path) -> None:
    def adapted(lora: LoraConfig) -> set[str]:
        names = (name for name, weight in load(base_folder, lora).named_parameters() if weight.requires_grad)
        return {match[1] for name in names if (match := re.search(r"(\w+)\.lora_A", name))}

    assert adapted(LoraConfig(targets=("q_proj", "v_proj"))) == {"q_proj", "v_proj"}
    assert {"q_proj", "down_proj"} < adapted(LoraConfig())
    assert "lm_head" not in adapted(LoraConfig())


def test_rank_stabilised_adapters_are_scaled_by_the_root(base_folder: Path) -> None:
    for rslora, scale in ((False, 8 / 16), (True, 8 / 4)):
        model = load(base_folder, LoraConfig(rank=16, alpha=8, rslora=rslora))
        scales = {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)}
        assert scales == {scale}


def test_dora_trains_magnitudes(base_folder: Path) -> None:
    names = [
        name for name, weight in load(base_folder, LoraConfig(dora=True)).named_parameters() if weight.requires_grad
    ]
    assert any("magnitude" in name for name in names)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_activation_checkpointing_changes_no_gradient(base_folder: Path, lora: LoraConfig | None) -> None:
    gradients = []
    for is_on in (False, True):
        model = load(base_folder, lora, activation_checkpointing=is_on)
        ids = torch.arange(5, 25)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({n: w.grad for n, w in model.named_parameters() if w.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)
