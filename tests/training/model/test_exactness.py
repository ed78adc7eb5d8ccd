"""Packed, padded and unpacked training give the same losses and gradients, for every kind of attention."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from instruct_ray.data.example import IGNORE_INDEX, Example
from instruct_ray.data.packs.tree import Pack, empty_pack, pack_examples
from instruct_ray.training.model.loss import pack_loss, token_losses
from instruct_ray.training.model.padded import num_padded_tokens, padded_loss, select_branches, unpack_branches
from tests.training.tiny_models import (
    CONFIGS,
    CPU,
    EXAMPLES,
    SHARED_PROMPT,
    assert_same_gradients,
    build_layout,
    compute_gradients,
    compute_unpacked_loss,
    default_attention,
    make_model,
)

SumLosses = Callable[[PreTrainedModel, list[Pack]], torch.Tensor]


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(CONFIGS[request.param])


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return make_model(CONFIGS["llama"])


def sum_packed_losses(model: PreTrainedModel, packs: list[Pack]) -> torch.Tensor:
    return torch.stack([pack_loss(model, pack, CPU, build_layout(model)) for pack in packs]).sum()


def sum_padded_losses(model: PreTrainedModel, packs: list[Pack]) -> torch.Tensor:
    with default_attention(model):
        return torch.stack([padded_loss(model, pack, CPU) for pack in packs]).sum()


def find_target_positions(example: Example, pack: Pack, used: set[int]) -> list[int]:
    """The positions of an example's target tokens in a pack, on the first branch that has them and is not used yet."""
    inputs = [*example.prompt_ids, *example.completion_ids][:-1]
    for branch in unpack_branches(pack):
        positions = branch.positions[len(example.prompt_ids) - 1 : len(inputs)]
        labels = np.asarray(pack["labels"])[positions].tolist()
        if branch.input_ids[: len(inputs)] == inputs and labels == example.completion_ids and not used & {*positions}:
            return positions
    raise AssertionError(f"{example.row_id} is not in the pack")


@pytest.mark.parametrize("sum_losses", [sum_packed_losses, sum_padded_losses])
@pytest.mark.parametrize("pack_tokens", [24, 128])
def test_gradients_equal_those_of_unpacked_examples(
    model: PreTrainedModel, sum_losses: SumLosses, pack_tokens: int
) -> None:
    packs = list(pack_examples(EXAMPLES, pack_tokens))
    unpacked_loss = torch.stack([compute_unpacked_loss(model, example) for example in EXAMPLES]).sum()
    loss = sum_losses(model, packs)
    torch.testing.assert_close(loss, unpacked_loss, rtol=1e-5, atol=0)
    expected = compute_gradients(model, unpacked_loss)
    assert_same_gradients(compute_gradients(model, loss), expected)
    assert sum(gradient.norm() for gradient in expected.values()) > 1


def test_losses_equal_those_of_unpacked_examples(model: PreTrainedModel) -> None:
    [pack] = pack_examples(EXAMPLES, 128)
    assert len(pack["input_ids"]) < pack["num_tokens"] / 2
    losses = torch.zeros(len(pack["input_ids"]))
    is_target = torch.tensor(np.asarray(pack["labels"]) != IGNORE_INDEX)
    with torch.no_grad():
        losses[is_target] = token_losses(model, pack, CPU, build_layout(model))
        used: set[int] = set()
        for example in EXAMPLES:
            positions = find_target_positions(example, pack, used)
            used |= {*positions}
            expected = compute_unpacked_loss(model, example)
            torch.testing.assert_close(losses[positions].sum(), expected, rtol=1e-5, atol=1e-6)
    assert len(used) == pack["num_trained"]


@pytest.mark.parametrize("name", ["qwen3-sliding", "mistral", "gemma2", "gemma3"])
def test_examples_are_longer_than_the_sliding_windows(name: str) -> None:
    model = make_model(CONFIGS[name])
    packs = list(pack_examples(EXAMPLES, 128))
    layout = build_layout(model)
    no_windows = dict.fromkeys(layout.windows) if isinstance(layout.windows, dict) else None
    full_attention = replace(layout, windows=no_windows)
    with torch.no_grad():
        full_attention_loss = sum(pack_loss(model, pack, CPU, full_attention) for pack in packs)
        difference = sum_packed_losses(model, packs) - full_attention_loss
    assert difference.abs() > 0.1


@pytest.mark.parametrize("sum_losses", [sum_packed_losses, sum_padded_losses])
def test_empty_pack_has_zero_loss_and_zero_gradients(llama: PreTrainedModel, sum_losses: SumLosses) -> None:
    loss = sum_losses(llama, [empty_pack()])
    assert loss.item() == 0
    gradients = compute_gradients(llama, loss)
    assert gradients.keys() == dict(llama.named_parameters()).keys()
    assert all(gradient.abs().max() == 0 for gradient in gradients.values())


def test_unpacking_keeps_every_target_token_once() -> None:
    [pack] = pack_examples(EXAMPLES, 128)
    branches = unpack_branches(pack)
    targets = [
        (position, label)
        for branch in branches
        for position, label in zip(branch.positions, branch.labels, strict=True)
        if label != IGNORE_INDEX
    ]
    labels = np.asarray(pack["labels"]).tolist()
    assert sorted(targets) == [(index, label) for index, label in enumerate(labels) if label != IGNORE_INDEX]
    position_ids = np.asarray(pack["position_ids"])
    for branch in branches:
        assert position_ids[branch.positions].tolist() == list(range(len(branch.positions)))
    # An example that is a prefix of another one has no branch of its own.
    assert len(branches) < len(EXAMPLES)
    assert num_padded_tokens(pack) == len(branches) * max(len(branch.input_ids) for branch in branches)


def test_selected_branches_form_a_valid_pack(llama: PreTrainedModel) -> None:
    [pack] = pack_examples(EXAMPLES, 128)
    branches = unpack_branches(pack)
    chosen = [branches[0], branches[2], branches[-1]]
    selected = select_branches(pack, chosen)
    assert [branch.input_ids for branch in unpack_branches(selected)] == [branch.input_ids for branch in chosen]
    with torch.no_grad():
        torch.testing.assert_close(sum_packed_losses(llama, [selected]), sum_padded_losses(llama, [selected]))


def test_pad_token_inside_an_example_is_not_padding(llama: PreTrainedModel) -> None:
    # Token 2 is the pad token of these models; here it is also in a prompt.
    examples = [
        Example("pads", [*SHARED_PROMPT, 2, 2, 20], [2, 2]),
        Example("long", [*SHARED_PROMPT, *range(40, 60)], [30, 2]),
    ]
    packs = list(pack_examples(examples, 128))
    with torch.no_grad():
        expected = torch.stack([compute_unpacked_loss(llama, example) for example in examples]).sum()
        torch.testing.assert_close(sum_padded_losses(llama, packs), expected, rtol=1e-5, atol=0)
