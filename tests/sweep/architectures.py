"""Tiny random models of the architectures that people tune, as Hugging Face folders that share one tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

# The context of each model in tokens. Few-shot prompts of the sweep are shorter.
CONTEXT = 512
LLAMA_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
HEAD = {"head_dim": 8}
WINDOW = {"sliding_window": 64}
GPT2_SIZES: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA2: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 4, "head_dim": 16}


def _make(class_name: str, **values: Any) -> Callable[[PreTrainedTokenizerFast], PreTrainedConfig]:
    """A function that makes a config of a class of transformers for a tokenizer."""

    def make(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
        ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config: PreTrainedConfig = getattr(transformers, class_name)(vocab_size=len(tokenizer), **ids, **values)
        return config

    return make


def _make_gemma3_multimodal(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    text = _make("Gemma3TextConfig", **LLAMA_SIZES, **HEAD, **WINDOW, query_pre_attn_scalar=8)(tokenizer)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    last = len(tokenizer) - 1
    return transformers.Gemma3Config(
        text_config=text.to_dict(),
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=last,
        boi_token_index=last,
        eoi_token_index=last,
        eos_token_id=tokenizer.eos_token_id,
    )


ARCHITECTURES: dict[str, Callable[[PreTrainedTokenizerFast], PreTrainedConfig]] = {
    "llama": _make("LlamaConfig", **LLAMA_SIZES),
    "mistral": _make("MistralConfig", **LLAMA_SIZES, **HEAD, **WINDOW),
    "mixtral": _make("MixtralConfig", **LLAMA_SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen2": _make("Qwen2Config", **LLAMA_SIZES),
    "qwen2_moe": _make("Qwen2MoeConfig", **LLAMA_SIZES, **EXPERTS, shared_expert_intermediate_size=32),
    "qwen3": _make("Qwen3Config", **LLAMA_SIZES, **HEAD),
    "qwen3_moe": _make("Qwen3MoeConfig", **LLAMA_SIZES, **HEAD, **EXPERTS),
    "qwen3_next": _make(
        "Qwen3NextConfig",
        **LLAMA_SIZES,
        **HEAD,
        **EXPERTS,
        shared_expert_intermediate_size=32,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["linear_attention", "full_attention"],
    ),
    "gemma": _make("GemmaConfig", **LLAMA_SIZES, **HEAD),
    "gemma2": _make("Gemma2Config", **LLAMA_SIZES, **HEAD, **WINDOW, query_pre_attn_scalar=8),
    "gemma3_text": _make(
        "Gemma3TextConfig",
        **LLAMA_SIZES,
        **HEAD,
        **WINDOW,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gemma3": _make_gemma3_multimodal,
    "phi": _make("PhiConfig", **LLAMA_SIZES),
    "phi3": _make("Phi3Config", **LLAMA_SIZES),
    "gpt2": _make("GPT2Config", **GPT2_SIZES),
    "gptj": _make("GPTJConfig", **GPT2_SIZES, rotary_dim=4),
    "gpt_neo": _make(
        "GPTNeoConfig",
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=64,
        max_position_embeddings=CONTEXT,
    ),
    "gpt_neox": _make("GPTNeoXConfig", **{k: v for k, v in LLAMA_SIZES.items() if k != "num_key_value_heads"}),
    "opt": _make(
        "OPTConfig",
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        word_embed_proj_dim=32,
    ),
    "bloom": _make("BloomConfig", hidden_size=32, n_layer=2, n_head=4),
    "falcon": _make("FalconConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "mpt": _make("MptConfig", d_model=32, n_heads=4, n_layers=2, max_seq_len=CONTEXT),
    "starcoder2": _make("Starcoder2Config", **LLAMA_SIZES),
    "olmo2": _make("Olmo2Config", **LLAMA_SIZES),
    "granite": _make("GraniteConfig", **LLAMA_SIZES),
    "granitemoehybrid": _make(
        "GraniteMoeHybridConfig",
        **LLAMA_SIZES,
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=32,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_n_groups=1,
        layer_types=["mamba", "attention"],
    ),
    "cohere": _make("CohereConfig", **LLAMA_SIZES),
    "cohere2": _make("Cohere2Config", **LLAMA_SIZES, **HEAD, **WINDOW),
    "stablelm": _make("StableLmConfig", **LLAMA_SIZES),
    "smollm3": _make("SmolLM3Config", **LLAMA_SIZES),
    "glm4": _make("Glm4Config", **LLAMA_SIZES, **HEAD),
    "gpt_oss": _make("GptOssConfig", **LLAMA_SIZES, **HEAD, **WINDOW, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v3": _make(
        "DeepseekV3Config",
        **LLAMA_SIZES | {"num_key_value_heads": 4},
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=16,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    ),
    "lfm2": _make("Lfm2Config", **LLAMA_SIZES, layer_types=["conv", "full_attention"]),
    "mamba": _make("MambaConfig", hidden_size=32, num_hidden_layers=2, state_size=8),
    "mamba2": _make("Mamba2Config", **MAMBA2, expand=2, n_groups=1),
    "falcon_h1": _make(
        "FalconH1Config",
        **LLAMA_SIZES,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=64,
    ),
    "jamba": _make(
        "JambaConfig",
        **LLAMA_SIZES,
        num_experts=2,
        num_experts_per_tok=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        use_mamba_kernels=False,
    ),
    "recurrent_gemma": _make("RecurrentGemmaConfig", **LLAMA_SIZES | {"num_hidden_layers": 3}, lru_width=32),
    "rwkv": _make("RwkvConfig", hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, context_length=CONTEXT),
    "t5": _make("T5Config", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
}


def save_architecture(name: str, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Save a random model of an architecture in fp32, and the tokenizer."""
    torch.manual_seed(0)
    config = ARCHITECTURES[name](tokenizer)
    if name == "t5":
        model = transformers.T5ForConditionalGeneration(config)
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
