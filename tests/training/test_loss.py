"""Packed and alone give the same loss and gradients."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from instruct_ray.data.packing import Example, empty_pack, pack
from instruct_ray.training.attention import tree_mask
from instruct_ray.training.loss import pack_loss

EXAMPLES = [
    Example("a", [5, 6, 7, 20, 8], [30, 31, 2]),
    Example("b", [5, 6, 7, 21, 22, 8], [32, 2]),
    Example("c", [5, 6, 9, 23, 8], [30, 2]),
    Example("d", [5, 6, 7, 20, 8], [33, 2]),
    Example("e", [11, 12], [34, 2]),
]
CPU = torch.device("cpu")


@pytest.fixture
def model(base_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32, attn_implementation="sdpa").train()


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain_loss(model: PreTrainedModel, example: Example) -> torch.Tensor:
    """One example alone, as transformers itself computes it: no mask of ours, no packing."""
    ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
    logits = model(input_ids=ids).logits[0, len(example.prompt_ids) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, ids[0, len(example.prompt_ids) :], reduction="sum")


@pytest.mark.parametrize("pack_tokens", [8, 16, 64])
def test_packed_equals_each_example_alone(model: PreTrainedModel, pack_tokens: int) -> None:
    alone = sum(plain_loss(model, example) for example in EXAMPLES)
    packed = sum(pack_loss(model, found, CPU) for found in pack(EXAMPLES, pack_tokens))
    assert isinstance(alone, torch.Tensor)
    assert isinstance(packed, torch.Tensor)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    expected, found_gradients = gradients(model, alone), gradients(model, packed)
    assert expected.keys() == found_gradients.keys()
    for name, gradient in expected.items():
        difference = (found_gradients[name] - gradient).norm()
        assert difference <= max(1e-5 * gradient.norm(), 1e-7), name


def test_an_empty_pack_is_a_zero_in_the_graph(model: PreTrainedModel) -> None:
    loss = pack_loss(model, empty_pack(), CPU)
    assert loss.item() == 0
    assert all(gradient.abs().max() == 0 for gradient in gradients(model, loss).values())


def test_the_mask_is_causal_within_a_branch() -> None:
    # 0 is shared by two branches: 1 2 and 3 4.
    mask = tree_mask(torch.tensor([5, 3, 3, 5, 5]))
    assert mask.shape == (1, 1, 5, 5)
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]
    assert mask[0, 0].int().tolist() == expected
