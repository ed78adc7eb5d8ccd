"""The mask of a pack: what it lets see, in each form."""

from dataclasses import replace

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config

from instruct_ray.data.packs.tree import Pack, pack_examples
from instruct_ray.errors import InputError
from instruct_ray.training.model.loss import pack_loss, token_losses
from instruct_ray.training.model.tree_mask import BLOCK_TOKENS, MaskLayout, PackTensors, build_masks, tree_mask
from tests.training.tiny_models import (
    CONFIGS,
    CPU,
    EXAMPLES,
    SIZES,
    assert_same_gradients,
    compute_gradients,
    make_model,
)

SLIDING = CONFIGS["gemma3"]


@pytest.fixture
def packed() -> Pack:
    return next(pack_examples(EXAMPLES, 512))


def test_the_mask_is_causal_within_a_branch() -> None:
    # 0 is shared by two branches: 1 2 and 3 4.
    mask = tree_mask(torch.tensor([5, 3, 3, 5, 5]), torch.tensor([0, 1, 2, 1, 2]))
    assert mask.shape == (1, 1, 5, 5)
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]
    assert mask[0, 0].int().tolist() == expected


def test_a_window_counts_positions_in_the_branch() -> None:
    # Token 4 stands two positions behind token 0, four places behind it in the pack.
    mask = tree_mask(torch.tensor([5, 3, 3, 5, 5]), torch.tensor([0, 1, 2, 1, 2]), window=2)
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert mask[0, 0].int().tolist() == expected


def test_padding_sees_only_itself_and_is_seen_by_none(packed: Pack) -> None:
    layout = MaskLayout.from_hf_config(SLIDING, "flex_attention", torch.float32)
    tensors = PackTensors.from_pack(packed, layout, CPU)
    num_tokens, length = len(packed["input_ids"]), len(tensors.input_ids_T)
    assert length % BLOCK_TOKENS == 0
    assert num_tokens < length < num_tokens + BLOCK_TOKENS
    for window in (None, 4):
        mask = tree_mask(tensors.subtree_end_T, tensors.position_ids_T, window)[0, 0]
        assert torch.equal(mask[num_tokens:], torch.eye(length, dtype=torch.bool)[num_tokens:])
        assert not mask[:num_tokens, num_tokens:].any()


def test_the_block_mask_is_the_dense_one(packed: Pack) -> None:
    tensors = PackTensors.from_pack(packed, MaskLayout.from_hf_config(SLIDING, "flex_attention", torch.float32), CPU)
    masks = [
        build_masks(tensors, MaskLayout.from_hf_config(SLIDING, form, torch.float32))
        for form in ("sdpa", "flex_attention")
    ]
    for dense, sparse in zip(masks[0].values(), masks[1].values(), strict=True):
        index = torch.arange(len(tensors.input_ids_T))
        assert torch.equal(sparse.mask_mod(None, None, index[:, None], index[None, :]), dense[0, 0])


def test_an_additive_mask_is_in_the_dtype_of_the_model(packed: Pack) -> None:
    layout = MaskLayout.from_hf_config(CONFIGS["llama"], "eager", torch.bfloat16)
    tensors = PackTensors.from_pack(packed, layout, CPU)
    mask = build_masks(tensors, layout)
    assert mask.dtype == torch.bfloat16
    assert torch.equal(mask == 0, build_masks(tensors, replace(layout, implementation="sdpa")))


def test_the_layout_follows_what_the_architecture_takes() -> None:
    layouts = {
        name: MaskLayout.from_hf_config(config, "sdpa", torch.float32).windows
        for name, config in {
            "llama": LlamaConfig(),
            "mistral": MistralConfig(sliding_window=7),
            "mistral-full": MistralConfig(sliding_window=None),
            # As old folders have it: Mistral ignores the key.
            "mistral-stale": MistralConfig(sliding_window=7, layer_types=["sliding_attention"] * 32),
            "qwen3-unused-window": Qwen3Config(sliding_window=7),
            "gemma3": Gemma3TextConfig(sliding_window=7),
        }.items()
    }
    assert layouts == {
        "llama": None,
        "mistral": 7,
        "mistral-full": None,
        "mistral-stale": 7,
        "qwen3-unused-window": None,
        "gemma3": {"full_attention": None, "sliding_attention": 7},
    }


def test_a_window_without_a_length_is_refused() -> None:
    with pytest.raises(InputError, match="gemma3_text has sliding_attention layers but no sliding_window"):
        MaskLayout.from_hf_config(Gemma3TextConfig(sliding_window=None), "sdpa", torch.float32)


def test_flex_attention_computes_what_sdpa_does(packed: Pack) -> None:
    # One layer, one mask: compiling for the CPU takes seconds each.
    config = MistralConfig(**SIZES | {"num_hidden_layers": 1}, sliding_window=6)
    model = make_model(config)
    found = {}
    with torch.no_grad():
        for form in ("flex_attention", "sdpa"):
            model.set_attn_implementation(form)
            found[form] = token_losses(model, packed, CPU, MaskLayout.from_hf_config(config, form, torch.float32))
    torch.testing.assert_close(found["flex_attention"], found["sdpa"], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: FlexAttention has no backward pass on CPU (torch 2.13)"
)
def test_flex_attention_has_the_gradients_of_sdpa(packed: Pack) -> None:
    device = torch.device("cuda")
    model = make_model(SLIDING).to(device)
    found = {}
    for form in ("flex_attention", "sdpa"):
        model.set_attn_implementation(form)
        loss = pack_loss(model, packed, device, MaskLayout.from_hf_config(SLIDING, form, torch.float32))
        found[form] = compute_gradients(model, loss)
    assert_same_gradients(found["flex_attention"], found["sdpa"])
