"""The attention mask of a pack: what a token sees, in each form of the mask."""

from dataclasses import replace

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config

from instruct_ray.data.packs.tree import Pack, pack_examples
from instruct_ray.errors import InputError
from instruct_ray.training.model.loss import pack_loss, token_losses
from instruct_ray.training.model.requirements import MIN_FLEX_HEAD_DIM
from instruct_ray.training.model.tree_mask import BLOCK_TOKENS, MaskLayout, PackTensors, build_masks, tree_mask
from tests.training.tiny_models import (
    CONFIGS,
    CPU,
    EXAMPLES,
    MIXED_LAYERS,
    SIZES,
    assert_same_gradients,
    compute_gradients,
    make_model,
)

WITH_SLIDING_LAYERS = CONFIGS["gemma3"]


@pytest.fixture
def pack() -> Pack:
    return next(pack_examples(EXAMPLES, 512))


def test_mask_is_causal_within_a_branch() -> None:
    # Token 0 is shared by two branches: 1 2 and 3 4.
    mask = tree_mask(torch.tensor([5, 3, 3, 5, 5]), torch.tensor([0, 1, 2, 1, 2]))
    assert mask.shape == (1, 1, 5, 5)
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]
    assert mask[0, 0].int().tolist() == expected


def test_window_counts_positions_in_the_branch() -> None:
    # Token 4 is two positions after token 0 in its branch, and four after it in the pack.
    mask = tree_mask(torch.tensor([5, 3, 3, 5, 5]), torch.tensor([0, 1, 2, 1, 2]), window=2)
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert mask[0, 0].int().tolist() == expected


def test_padding_token_sees_only_itself_and_is_not_seen(pack: Pack) -> None:
    layout = MaskLayout.from_hf_config(WITH_SLIDING_LAYERS, "flex_attention", torch.float32)
    tensors = PackTensors.from_pack(pack, layout, CPU)
    num_tokens, length = len(pack["input_ids"]), len(tensors.input_ids_T)
    assert length % BLOCK_TOKENS == 0
    assert num_tokens < length < num_tokens + BLOCK_TOKENS
    for window in (None, 4):
        mask = tree_mask(tensors.subtree_end_T, tensors.position_ids_T, window)[0, 0]
        assert torch.equal(mask[num_tokens:], torch.eye(length, dtype=torch.bool)[num_tokens:])
        assert not mask[:num_tokens, num_tokens:].any()


def test_block_mask_equals_dense_mask(pack: Pack) -> None:
    layouts = {
        attn_implementation: MaskLayout.from_hf_config(WITH_SLIDING_LAYERS, attn_implementation, torch.float32)
        for attn_implementation in ("sdpa", "flex_attention")
    }
    tensors = PackTensors.from_pack(pack, layouts["flex_attention"], CPU)
    dense_masks, block_masks = (build_masks(tensors, layout) for layout in layouts.values())
    index = torch.arange(len(tensors.input_ids_T))
    for dense_mask, block_mask in zip(dense_masks.values(), block_masks.values(), strict=True):
        assert torch.equal(block_mask.mask_mod(None, None, index[:, None], index[None, :]), dense_mask[0, 0])


def test_additive_mask_has_the_dtype_of_the_model(pack: Pack) -> None:
    layout = MaskLayout.from_hf_config(CONFIGS["llama"], "eager", torch.bfloat16)
    tensors = PackTensors.from_pack(pack, layout, CPU)
    mask = build_masks(tensors, layout)
    assert mask.dtype == torch.bfloat16
    assert torch.equal(mask == 0, build_masks(tensors, replace(layout, attn_implementation="sdpa")))


def test_layout_follows_the_model_config() -> None:
    hf_configs = {
        "llama": LlamaConfig(),
        "mistral": MistralConfig(sliding_window=7),
        "mistral-full": MistralConfig(sliding_window=None),
        # As in old model folders: Mistral ignores the key.
        "mistral-stale": MistralConfig(sliding_window=7, layer_types=["sliding_attention"] * 32),
        "qwen3-unused-window": Qwen3Config(sliding_window=7),
        "gemma3": Gemma3TextConfig(sliding_window=7),
    }
    windows = {
        name: MaskLayout.from_hf_config(hf_config, "sdpa", torch.float32).windows
        for name, hf_config in hf_configs.items()
    }
    assert windows == {
        "llama": None,
        "mistral": 7,
        "mistral-full": None,
        "mistral-stale": 7,
        "qwen3-unused-window": None,
        "gemma3": {"full_attention": None, "sliding_attention": 7},
    }


def test_sliding_layers_without_a_window_are_refused() -> None:
    with pytest.raises(InputError, match="gemma3_text has sliding_attention layers but no sliding_window"):
        MaskLayout.from_hf_config(Gemma3TextConfig(sliding_window=None), "sdpa", torch.float32)


def test_flex_attention_computes_the_losses_of_sdpa(pack: Pack) -> None:
    # One layer and one mask: compiling each for the CPU takes seconds.
    config = MistralConfig(**SIZES | {"num_hidden_layers": 1}, sliding_window=6)
    model = make_model(config)
    losses = {}
    with torch.no_grad():
        for attn_implementation in ("flex_attention", "sdpa"):
            model.set_attn_implementation(attn_implementation)
            layout = MaskLayout.from_hf_config(config, attn_implementation, torch.float32)
            losses[attn_implementation] = token_losses(model, pack, CPU, layout)
    torch.testing.assert_close(losses["flex_attention"], losses["sdpa"], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: FlexAttention has no backward pass on CPU (torch 2.13)"
)
def test_flex_attention_computes_the_gradients_of_sdpa(pack: Pack) -> None:
    device = torch.device("cuda")
    config = Gemma3TextConfig(**SIZES | {"head_dim": MIN_FLEX_HEAD_DIM}, **MIXED_LAYERS)
    model = make_model(config).to(device)
    gradients = {}
    for attn_implementation in ("flex_attention", "sdpa"):
        model.set_attn_implementation(attn_implementation)
        layout = MaskLayout.from_hf_config(config, attn_implementation, torch.float32)
        gradients[attn_implementation] = compute_gradients(model, pack_loss(model, pack, device, layout))
    assert_same_gradients(gradients["flex_attention"], gradients["sdpa"])
