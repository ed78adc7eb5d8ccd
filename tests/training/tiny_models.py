"""Tiny random models of several architectures, examples that share prompts in many ways, and what to compare."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from instruct_ray.data.example import Example
from instruct_ray.data.packs.dataset import MANIFEST, shard_file, write_packs
from instruct_ray.data.packs.tree import Pack
from instruct_ray.training.model.requirements import default_attn_implementation, packed_attn_implementation
from instruct_ray.training.model.tree_mask import MaskLayout

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    # 2 ends every completion: that padding has the same id as a token must not matter.
    "pad_token_id": 2,
    "eos_token_id": 2,
    "bos_token_id": None,
}
MIXED = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "qwen3-sliding": Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "mistral": MistralConfig(**SIZES, sliding_window=6),
    "gemma2": Gemma2Config(**SIZES, **MIXED),
    "gemma3": Gemma3TextConfig(**SIZES, **MIXED),
    "gpt2": GPT2Config(
        vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=128, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0
    ),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
}
HEAD = [5, 6, 7, 8, 9, 10, 11]
# A chat of three turns: each prompt is the one before with its completion and a user's words.
TURNS = [
    Example("chat-1", [*HEAD, 20, 21], [30, 31, 2]),
    Example("chat-2", [*HEAD, 20, 21, 30, 31, 2, 22, 23], [32, 2]),
    Example("chat-3", [*HEAD, 20, 21, 30, 31, 2, 22, 23, 32, 2, 24], [33, 34, 35, 2]),
]
EXAMPLES = [
    Example("other-input", [*HEAD, 25, 26, 27, 8], [30, 2]),
    Example("same-prompt-a", [*HEAD, 40, 41], [36, 2]),
    Example("same-prompt-b", [*HEAD, 40, 41], [37, 38, 2]),
    Example("same-prompt-and-first-token", [*HEAD, 40, 41], [37, 39, 2]),
    *TURNS,
    # Its whole path is the beginning of another's.
    Example("path-is-prefix", [*HEAD, 20], [21, 30]),
    Example("twice", [*HEAD, 40, 41], [36, 2]),
    Example("shares-two-tokens", [5, 6, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51], [30, 2]),
    Example("shares-nothing", [12, 13], [34, 2]),
    Example("one-token-prompt", [14], [35, 36, 2]),
]


def make_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Random weights, larger than usual so that attention is far from uniform."""
    torch.manual_seed(0)
    implementation = packed_attn_implementation(config, CPU)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.train()


@contextmanager
def plain(model: PreTrainedModel) -> Iterator[None]:
    """The model with the attention of one example alone or a padded batch."""
    packed = model.config._attn_implementation
    model.set_attn_implementation(default_attn_implementation(model.config))
    yield
    model.set_attn_implementation(packed)


def layout_of(model: PreTrainedModel) -> MaskLayout:
    return MaskLayout.from_hf_config(model.config, model.config._attn_implementation, torch.float32)


def alone_loss(model: PreTrainedModel, example: Example) -> torch.Tensor:
    """As transformers itself computes it: no mask of ours, no packing, no padding."""
    ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
    with plain(model):
        logits = model(input_ids=ids, use_cache=False).logits[0, len(example.prompt_ids) - 1 : -1]
    return F.cross_entropy(logits, ids[0, len(example.prompt_ids) :], reduction="sum")


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm()
        assert difference <= max(1e-5 * gradient.norm(), 1e-7), f"{name}: {difference} of {gradient.norm()}"


def save_packs(folder: Path, packs: Sequence[Pack], pack_tokens: int) -> None:
    """A packed dataset of one file."""
    folder.mkdir()
    write_packs(folder / shard_file(0), packs, pack_tokens)
    manifest = {"num_packs": len(packs), "pack_tokens": pack_tokens, "files": {shard_file(0): len(packs)}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
