"""Tiny random models of several architectures, examples that share prompts in many ways, and reference losses."""

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
    LlamaForCausalLM,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from instruct_ray.base_model.causal_lm import default_attn_implementation
from instruct_ray.data.example import Example
from instruct_ray.data.packs.dataset import MANIFEST, shard_file, write_packs
from instruct_ray.data.packs.tree import Pack
from instruct_ray.training.model.requirements import packed_attn_implementation
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
    # 2 also ends every completion: padding with the id of a real token must not change anything.
    "pad_token_id": 2,
    "eos_token_id": 2,
    "bos_token_id": None,
}
MIXED_LAYERS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "qwen3-sliding": Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "mistral": MistralConfig(**SIZES, sliding_window=6),
    "gemma2": Gemma2Config(**SIZES, **MIXED_LAYERS),
    "gemma3": Gemma3TextConfig(**SIZES, **MIXED_LAYERS),
    "gpt2": GPT2Config(
        vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=128, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0
    ),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
}
SHARED_PROMPT = [5, 6, 7, 8, 9, 10, 11]
# A chat of three turns: each prompt is the previous prompt, its completion, and the next message of the user.
CHAT_TURNS = [
    Example("chat-1", [*SHARED_PROMPT, 20, 21], [30, 31, 2]),
    Example("chat-2", [*SHARED_PROMPT, 20, 21, 30, 31, 2, 22, 23], [32, 2]),
    Example("chat-3", [*SHARED_PROMPT, 20, 21, 30, 31, 2, 22, 23, 32, 2, 24], [33, 34, 35, 2]),
]
EXAMPLES = [
    Example("other-input", [*SHARED_PROMPT, 25, 26, 27, 8], [30, 2]),
    Example("same-prompt-a", [*SHARED_PROMPT, 40, 41], [36, 2]),
    Example("same-prompt-b", [*SHARED_PROMPT, 40, 41], [37, 38, 2]),
    Example("same-prompt-and-first-token", [*SHARED_PROMPT, 40, 41], [37, 39, 2]),
    *CHAT_TURNS,
    # Prompt and completion together are a prefix of another example.
    Example("path-is-prefix", [*SHARED_PROMPT, 20], [21, 30]),
    Example("twice", [*SHARED_PROMPT, 40, 41], [36, 2]),
    Example("shares-two-tokens", [5, 6, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51], [30, 2]),
    Example("shares-nothing", [12, 13], [34, 2]),
    Example("one-token-prompt", [14], [35, 36, 2]),
]


def make_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Make a model with random weights, larger than usual so that attention is far from uniform."""
    torch.manual_seed(0)
    attn_implementation = packed_attn_implementation(config, CPU)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attn_implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.train()


def save_llama(folder: Path) -> None:
    """Save a random 2-layer Llama to a folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@contextmanager
def default_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use the attention implementation for a single example or a padded batch inside the block."""
    packed = model.config._attn_implementation
    model.set_attn_implementation(default_attn_implementation(model.config))
    yield
    model.set_attn_implementation(packed)


def build_layout(model: PreTrainedModel) -> MaskLayout:
    """Build the mask layout of a model made by `make_model`."""
    return MaskLayout.from_hf_config(model.config, model.config._attn_implementation, torch.float32)


def compute_unpacked_loss(model: PreTrainedModel, example: Example) -> torch.Tensor:
    """Compute the summed loss of one example as plain transformers does: without our mask, packing or padding."""
    ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
    with default_attention(model):
        logits = model(input_ids=ids, use_cache=False).logits[0, len(example.prompt_ids) - 1 : -1]
    return F.cross_entropy(logits, ids[0, len(example.prompt_ids) :], reduction="sum")


def compute_gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run the backward pass of a loss, and return the gradient of each parameter that has one."""
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Assert that two sets of gradients differ by rounding only."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = (actual[name] - gradient).norm()
        assert difference <= max(1e-5 * gradient.norm(), 1e-7), f"{name}: {difference} of {gradient.norm()}"


def save_packs(folder: Path, packs: Sequence[Pack], pack_tokens: int) -> None:
    """Save a packed dataset of one file."""
    folder.mkdir()
    write_packs(folder / shard_file(0), packs, pack_tokens)
    manifest = {"num_packs": len(packs), "pack_tokens": pack_tokens, "files": {shard_file(0): len(packs)}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
