"""Attention in chunks of queries computes what dense attention does, from far fewer keys."""

import pytest
import torch
from torch.nn import functional as F

from instruct_ray.training.model.chunked_attention import CHUNK_TOKENS, KeyChunks, chunked_attention
from instruct_ray.training.model.tree_mask import tree_mask


def comb(length: int, shared: int, tooth: int) -> torch.Tensor:
    """The mask of a pack whose examples share a prompt and have a branch each."""
    starts = torch.arange(shared, length).sub(shared).div(tooth, rounding_mode="floor") * tooth + shared
    ends = torch.cat([torch.full((shared,), length), (starts + tooth).clamp(max=length)])
    return tree_mask(ends, torch.arange(length))


@pytest.mark.parametrize("length", [1, CHUNK_TOKENS - 1, CHUNK_TOKENS, 3 * CHUNK_TOKENS + 5])
@pytest.mark.parametrize("num_groups", [1, 3, 6])
def test_it_equals_dense_attention_and_its_gradients(length: int, num_groups: int) -> None:
    torch.manual_seed(0)
    mask = comb(length, min(5, length), 9)
    query = torch.randn(1, 6, length, 8, requires_grad=True)
    key, value = (torch.randn(1, num_groups, length, 8, requires_grad=True) for _ in range(2))
    direction = torch.randn(1, length, 6, 8)
    found, _ = chunked_attention(torch.nn.Identity(), query, key, value, mask)
    dense = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-6)
    inputs = (query, key, value)
    expected = torch.autograd.grad((dense * direction).sum(), inputs)
    for got, wanted in zip(torch.autograd.grad((found * direction).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_chunk_is_given_the_keys_it_sees_only() -> None:
    shared, tooth = 10, 16
    mask = comb(64 * CHUNK_TOKENS, shared, tooth)[0, 0]
    chunks = KeyChunks.from_mask(mask)
    assert chunks.keys_NK.shape[1] <= shared + CHUNK_TOKENS + tooth
    for number in (0, 17, 63):
        queries = slice(number * CHUNK_TOKENS, (number + 1) * CHUNK_TOKENS)
        wanted = mask[queries].any(0).nonzero()[:, 0]
        seen = ~chunks.hidden_NCK[number].all(0)
        assert torch.equal(chunks.keys_NK[number][seen], wanted)


def test_dropout_is_for_training_only() -> None:
    torch.manual_seed(0)
    mask = comb(20, 5, 5)
    states = [torch.randn(1, 2, 20, 4) for _ in range(3)]
    module = torch.nn.Identity()
    plain, _ = chunked_attention(module.eval(), *states, mask, dropout=0.5)
    torch.testing.assert_close(plain, chunked_attention(module, *states, mask)[0])
    assert not torch.allclose(chunked_attention(module.train(), *states, mask, dropout=0.5)[0], plain)
