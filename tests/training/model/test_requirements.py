"""Which base models can be trained, which can be packed, and which attention they use."""

import re

import pytest
import torch
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
    RwkvConfig,
    xLSTMConfig,
)

from instruct_ray.base_model.causal_lm import default_attn_implementation
from instruct_ray.errors import InputError
from instruct_ray.training.model.requirements import (
    aux_loss_coef,
    check_lora_targets,
    check_trainable,
    find_packing_incompatibility,
    packed_attn_implementation,
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
    ("hf_config", "pattern"),
    [
        (MambaConfig(), "mamba: recurrent layers"),
        (FalconH1Config(), "falcon_h1: recurrent layers"),
        (Qwen3NextConfig(), "qwen3_next: layers of type linear_attention"),
        (RecurrentGemmaConfig(), "recurrent_gemma: recurrent layers"),
        (Llama4TextConfig(), "llama4_text: layers of type chunked_attention.*attention_chunk_size"),
        (MixtralConfig(output_router_logits=True), "mixtral: an auxiliary router loss"),
        (BloomConfig(), "bloom: positions counted by index"),
        (FalconConfig(alibi=True), "falcon: positions counted by index"),
        (GPTNeoConfig(), "gpt_neo: local attention"),
        (Gemma3TextConfig(use_bidirectional_attention=True), "gemma3_text: attention to later tokens"),
        (Phi3Config(rope_parameters=LONGROPE), "phi3: longrope positions.*exceeds 4096"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_packing_incompatibility_is_described(hf_config: PreTrainedConfig, pattern: str) -> None:
    incompatibility = find_packing_incompatibility(hf_config, max_tokens=8192)
    assert incompatibility is not None
    assert re.match(pattern, incompatibility), incompatibility


@pytest.mark.parametrize(
    "hf_config",
    [*CONFIGS.values(), Qwen3MoeConfig(), GptOssConfig(), Phi3Config(rope_parameters=LONGROPE)],
    ids=lambda hf_config: hf_config.model_type,
)
def test_other_models_can_be_packed(hf_config: PreTrainedConfig) -> None:
    assert find_packing_incompatibility(hf_config, max_tokens=4096) is None


def test_attention_depends_on_device_and_model() -> None:
    hf_configs = {
        "llama": LlamaConfig(),
        "llama-dropout": LlamaConfig(attention_dropout=0.1),
        "llama-small-heads": LlamaConfig(hidden_size=32, num_attention_heads=4),
        "gemma2": Gemma2Config(),
        "gpt2": GPT2Config(),
        # Has a list of attention implementations of its own.
        "falcon": FalconConfig(),
    }
    assert {name: packed_attn_implementation(hf_config, CPU) for name, hf_config in hf_configs.items()} == {
        "llama": "tree_chunks",
        "llama-dropout": "tree_chunks",
        "llama-small-heads": "tree_chunks",
        # SDPA has no softcapping.
        "gemma2": "eager",
        "gpt2": "tree_chunks",
        "falcon": "sdpa",
    }
    assert {name: packed_attn_implementation(hf_config, CUDA) for name, hf_config in hf_configs.items()} == {
        "llama": "flex_attention",
        "llama-dropout": "sdpa",
        # FlexAttention takes no head dimension of 8.
        "llama-small-heads": "sdpa",
        "gemma2": "flex_attention",
        "gpt2": "sdpa",
        "falcon": "sdpa",
    }
    assert default_attn_implementation(Gemma2Config()) == "eager"


def test_auxiliary_loss_counts_only_if_the_config_enables_it() -> None:
    assert aux_loss_coef(MixtralConfig(output_router_logits=True, router_aux_loss_coef=0.02)) == 0.02
    assert aux_loss_coef(MixtralConfig(router_aux_loss_coef=0.02)) == 0
    assert aux_loss_coef(LlamaConfig()) == 0


@pytest.mark.parametrize(
    ("hf_config", "pattern"),
    [
        (CLIPConfig(), "model.base: clip is not a causal language model"),
        (xLSTMConfig(), "model.base: transformers generates with xlstm without its usual cache"),
        (RwkvConfig(), "model.base: transformers generates with rwkv without its usual cache.*not be evaluated"),
        (Gemma3TextConfig(sliding_window=None), "no sliding_window"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_model_that_can_not_be_trained_is_refused(hf_config: PreTrainedConfig, pattern: str) -> None:
    with pytest.raises(InputError, match=pattern):
        check_trainable(hf_config)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_unknown_lora_targets_are_named(name: str) -> None:
    known = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"]}[name]
    check_lora_targets(CONFIGS[name], known)
    with pytest.raises(
        InputError, match=rf"model\.lora\.targets: {name} has no lm_head, query that LoRA can adapt, only .*{known[0]}"
    ):
        check_lora_targets(CONFIGS[name], [*known, "query", "lm_head"])
