"""Attention in chunks of queries gives the same result as dense attention, and reads far fewer keys."""

import pytest
import torch
from torch.nn import functional as F

from instruct_ray.training.model.chunked_attention import CHUNK_TOKENS, KeyChunks, chunked_attention
from instruct_ray.training.model.tree_mask import tree_mask


def build_mask(length: int, num_shared: int, branch_tokens: int) -> torch.Tensor:
    """The mask of a pack of examples that share a prompt and have one branch each."""
    branch = torch.arange(num_shared, length).sub(num_shared).div(branch_tokens, rounding_mode="floor")
    branch_starts = branch * branch_tokens + num_shared
    branch_ends = (branch_starts + branch_tokens).clamp(max=length)
    return tree_mask(torch.cat([torch.full((num_shared,), length), branch_ends]), torch.arange(length))


@pytest.mark.parametrize("length", [1, CHUNK_TOKENS - 1, CHUNK_TOKENS, 3 * CHUNK_TOKENS + 5])
@pytest.mark.parametrize("num_groups", [1, 3, 6])
def test_output_and_gradients_equal_dense_attention(length: int, num_groups: int) -> None:
    torch.manual_seed(0)
    mask = build_mask(length, min(5, length), 9)
    query = torch.randn(1, 6, length, 8, requires_grad=True)
    key, value = (torch.randn(1, num_groups, length, 8, requires_grad=True) for _ in range(2))
    direction = torch.randn(1, length, 6, 8)
    chunked, _ = chunked_attention(torch.nn.Identity(), query, key, value, mask)
    dense = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(chunked, dense, rtol=1e-5, atol=1e-6)
    inputs = (query, key, value)
    expected_gradients = torch.autograd.grad((dense * direction).sum(), inputs)
    gradients = torch.autograd.grad((chunked * direction).sum(), inputs)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_chunk_contains_exactly_the_keys_it_sees() -> None:
    num_shared, branch_tokens = 10, 16
    mask = build_mask(64 * CHUNK_TOKENS, num_shared, branch_tokens)[0, 0]
    chunks = KeyChunks.from_mask(mask)
    assert chunks.keys_NK.shape[1] <= num_shared + CHUNK_TOKENS + branch_tokens
    for number in (0, 17, 63):
        queries = slice(number * CHUNK_TOKENS, (number + 1) * CHUNK_TOKENS)
        expected = mask[queries].any(0).nonzero()[:, 0]
        is_seen = ~chunks.hidden_NCK[number].all(0)
        assert torch.equal(chunks.keys_NK[number][is_seen], expected)


def test_dropout_applies_in_training_only() -> None:
    torch.manual_seed(0)
    mask = build_mask(20, 5, 5)
    query, key, value = (torch.randn(1, 2, 20, 4) for _ in range(3))
    module = torch.nn.Identity()
    in_eval, _ = chunked_attention(module.eval(), query, key, value, mask, dropout=0.5)
    without_dropout, _ = chunked_attention(module, query, key, value, mask)
    in_training, _ = chunked_attention(module.train(), query, key, value, mask, dropout=0.5)
    torch.testing.assert_close(in_eval, without_dropout)
    assert not torch.allclose(in_training, in_eval)
