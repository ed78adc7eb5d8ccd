"""The prefixes that an engine keeps: found by their longest common beginning, computed once, bounded."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from instruct_ray.inference.prefix_cache import MIN_TOKENS, PrefixCache
from instruct_ray.inference.prompt_batch import MIN_TOKENS_SAVED, PromptBatch

LONG = [5 + 7 * number % 200 for number in range(300)]


@pytest.fixture(scope="module")
def model(base_folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(base_folder)


def count_inputs(model: torch.nn.Module, prefixes: PrefixCache, ids: list[int]) -> int:
    """How many tokens the model computes for a prefix."""
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: sizes.append(args[0].shape[1]), with_kwargs=True)
    cache = prefixes.compute(model, ids)
    hook.remove()
    assert cache.layers[0].keys.shape[2] == len(ids)
    return sum(sizes)


def test_what_is_kept_is_not_computed_again(model: torch.nn.Module) -> None:
    prefixes = PrefixCache(1000)
    assert count_inputs(model, prefixes, LONG[:100]) == 100
    assert count_inputs(model, prefixes, LONG[:100]) == 0
    assert count_inputs(model, prefixes, LONG[:60]) == 0
    assert count_inputs(model, prefixes, LONG[:150]) == 50
    # The longer prefix replaces the shorter one.
    assert prefixes.num_tokens == 150
    other = [*LONG[:80], *([3] * 20)]
    assert prefixes.num_kept(other) == 80
    assert count_inputs(model, prefixes, other) == 20
    assert prefixes.num_kept([*LONG[: MIN_TOKENS - 1], 3]) == 0


def test_the_oldest_prefix_makes_room(model: torch.nn.Module) -> None:
    prefixes = PrefixCache(250)
    first, second, third = ([letter, *LONG[:99]] for letter in (6, 7, 8))
    prefixes.compute(model, first)
    prefixes.compute(model, second)
    prefixes.compute(model, first)
    prefixes.compute(model, third)
    assert prefixes.num_tokens == 200
    assert [prefixes.num_kept(ids) for ids in (first, second, third)] == [100, 0, 100]
    # Larger than everything that may be kept.
    prefixes.compute(model, LONG[:251])
    assert prefixes.num_tokens == 200


def test_kept_keys_are_those_of_one_forward_pass(model: torch.nn.Module) -> None:
    prefixes, fresh = PrefixCache(1000), PrefixCache(0)
    prefixes.compute(model, LONG[:100])
    extended, expected = prefixes.compute(model, LONG[:200]), fresh.compute(model, LONG[:200])
    for layer, expected_layer in zip(extended.layers, expected.layers, strict=True):
        assert torch.allclose(layer.keys, expected_layer.keys, atol=1e-5)
        assert torch.allclose(layer.values, expected_layer.values, atol=1e-5)


def test_what_two_prompts_have_in_common_is_kept(model: torch.nn.Module) -> None:
    prefixes = PrefixCache(1000)
    instruction = LONG[:100]

    def ask(*prompts: list[int]) -> int:
        """How many tokens are taken from a cache."""
        prefix = PromptBatch(prompts, 0).compute_prefix_cache(model, prefixes)
        return 0 if prefix is None else prefix.states.get_seq_length()

    assert ask([*instruction, 1, 2]) == 0
    assert prefixes.num_tokens == 0
    # The second prompt shows what comes again.
    assert ask([*instruction, *([3] * 200)]) == 100
    assert ask([*instruction, *([4] * 200)]) == 100
    assert ask([*instruction, 5], [*instruction, 6]) == 100
    assert prefixes.num_tokens == 100
    # A chat that goes on: what it shares with the turn before.
    chat = [*instruction, *([7] * (MIN_TOKENS_SAVED + 10))]
    assert ask(chat) == 100
    assert ask([*chat, 8, 9]) == len(chat)
    assert ask([9, 8, *instruction]) == 0


def test_nothing_is_kept_or_remembered_without_room(model: torch.nn.Module) -> None:
    prefixes = PrefixCache(0)
    for _ in range(3):
        assert PromptBatch([LONG], 0).compute_prefix_cache(model, prefixes) is None
    assert prefixes.num_seen(LONG) == 0


def test_memory_is_freed(model: torch.nn.Module) -> None:
    prefixes = PrefixCache(1000)
    prefixes.compute(model, LONG)
    prefixes.clear()
    assert (prefixes.num_tokens, prefixes.num_kept(LONG)) == (0, 0)


def test_shorter_prompts_reuse_less(model: torch.nn.Module) -> None:
    prefixes = PrefixCache(1000)
    prefixes.compute(model, LONG[:100])
    batch = PromptBatch([[*LONG[:100], 1], [*LONG[:100], *[2] * 31]], 0)
    assert batch.num_reused(batch.compute_prefix_cache(model, prefixes)) == [70, 100]
