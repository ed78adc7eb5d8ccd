"""Packed, padded and alone: the same losses and the same gradient of every parameter, for every kind of attention."""

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

Summed = Callable[[PreTrainedModel, list[Pack]], torch.Tensor]


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(CONFIGS[request.param])


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return make_model(CONFIGS["llama"])


def packed_sum(model: PreTrainedModel, packs: list[Pack]) -> torch.Tensor:
    return torch.stack([pack_loss(model, one, CPU, build_layout(model)) for one in packs]).sum()


def padded_sum(model: PreTrainedModel, packs: list[Pack]) -> torch.Tensor:
    with default_attention(model):
        return torch.stack([padded_loss(model, one, CPU) for one in packs]).sum()


def places(example: Example, packed: Pack, taken: set[int]) -> list[int]:
    """Where an example is trained in a pack: the first way in the tree that reads and trains what it does."""
    inputs = [*example.prompt_ids, *example.completion_ids][:-1]
    for branch in unpack_branches(packed):
        trained = branch.positions[len(example.prompt_ids) - 1 : len(inputs)]
        labels = np.asarray(packed["labels"])[trained].tolist()
        if branch.input_ids[: len(inputs)] == inputs and labels == example.completion_ids and not taken & {*trained}:
            return trained
    raise AssertionError(f"{example.row_id} is not in the pack")


@pytest.mark.parametrize("summed", [packed_sum, padded_sum])
@pytest.mark.parametrize("pack_tokens", [24, 128])
def test_gradients_equal_those_of_each_example_alone(model: PreTrainedModel, summed: Summed, pack_tokens: int) -> None:
    packs = list(pack_examples(EXAMPLES, pack_tokens))
    alone = torch.stack([compute_unpacked_loss(model, example) for example in EXAMPLES]).sum()
    found = summed(model, packs)
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=0)
    expected = compute_gradients(model, alone)
    assert_same_gradients(compute_gradients(model, found), expected)
    assert sum(gradient.norm() for gradient in expected.values()) > 1


def test_losses_equal_those_of_each_example_alone(model: PreTrainedModel) -> None:
    [packed] = pack_examples(EXAMPLES, 128)
    assert len(packed["input_ids"]) < packed["num_tokens"] / 2
    losses = torch.zeros(len(packed["input_ids"]))
    with torch.no_grad():
        losses[torch.tensor(np.asarray(packed["labels"]) != IGNORE_INDEX)] = token_losses(
            model, packed, CPU, build_layout(model)
        )
        taken: set[int] = set()
        for example in EXAMPLES:
            trained = places(example, packed, taken)
            taken |= {*trained}
            torch.testing.assert_close(
                losses[trained].sum(), compute_unpacked_loss(model, example), rtol=1e-5, atol=1e-6
            )
    assert len(taken) == packed["num_trained"]


@pytest.mark.parametrize("name", ["qwen3-sliding", "mistral", "gemma2", "gemma3"])
def test_the_examples_are_longer_than_the_windows(name: str) -> None:
    model = make_model(CONFIGS[name])
    packs = list(pack_examples(EXAMPLES, 128))
    layout = build_layout(model)
    blind = replace(layout, windows=dict.fromkeys(layout.windows) if isinstance(layout.windows, dict) else None)
    with torch.no_grad():
        difference = packed_sum(model, packs) - sum(pack_loss(model, one, CPU, blind) for one in packs)
    assert difference.abs() > 0.1


@pytest.mark.parametrize("summed", [packed_sum, padded_sum])
def test_an_empty_pack_is_a_zero_in_the_graph(llama: PreTrainedModel, summed: Summed) -> None:
    loss = summed(llama, [empty_pack()])
    assert loss.item() == 0
    found = compute_gradients(llama, loss)
    assert found.keys() == dict(llama.named_parameters()).keys()
    assert all(gradient.abs().max() == 0 for gradient in found.values())


def test_unpacking_counts_every_trained_position_once() -> None:
    [packed] = pack_examples(EXAMPLES, 128)
    branches = unpack_branches(packed)
    trained = [
        (position, label)
        for branch in branches
        for position, label in zip(branch.positions, branch.labels, strict=True)
        if label != IGNORE_INDEX
    ]
    labels = np.asarray(packed["labels"]).tolist()
    assert sorted(trained) == [(i, label) for i, label in enumerate(labels) if label != IGNORE_INDEX]
    positions = np.asarray(packed["position_ids"])
    for branch in branches:
        assert positions[branch.positions].tolist() == list(range(len(branch.positions)))
    # What is the beginning of another's way has no branch of its own.
    assert len(branches) < len(EXAMPLES)
    assert num_padded_tokens(packed) == len(branches) * max(len(branch.input_ids) for branch in branches)


def test_a_pruned_pack_is_the_pack_of_its_branches(llama: PreTrainedModel) -> None:
    [packed] = pack_examples(EXAMPLES, 128)
    branches = unpack_branches(packed)
    chosen = [branches[0], branches[2], branches[-1]]
    pruned = select_branches(packed, chosen)
    assert [branch.input_ids for branch in unpack_branches(pruned)] == [branch.input_ids for branch in chosen]
    with torch.no_grad():
        torch.testing.assert_close(packed_sum(llama, [pruned]), padded_sum(llama, [pruned]))


def test_padding_is_told_by_place_and_not_by_id(llama: PreTrainedModel) -> None:
    # Token 2 is the pad token of these models; here it stands in a prompt as well.
    examples = [
        Example("pads", [*SHARED_PROMPT, 2, 2, 20], [2, 2]),
        Example("long", [*SHARED_PROMPT, *range(40, 60)], [30, 2]),
    ]
    packs = list(pack_examples(examples, 128))
    with torch.no_grad():
        alone = torch.stack([compute_unpacked_loss(llama, example) for example in examples]).sum()
        torch.testing.assert_close(padded_sum(llama, packs), alone, rtol=1e-5, atol=0)
