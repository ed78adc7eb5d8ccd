"""The transformers engine generates what a plain greedy loop generates, for any combination of requests in a batch."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.inference.continuous_batch import ContinuousBatch
from instruct_ray.inference.engine import (
    Completion,
    Engine,
    SamplingParams,
    generate_all,
)
from instruct_ray.inference.engines import create_engine
from instruct_ray.inference.prefix_cache import PrefixCache
from instruct_ray.inference.prompt_batch import PromptBatch

PROMPTS = [[5, 6, 7], [9, 10, 11, 12, 13], [20], [21, 22, 23, 24]]
NO_STOP_TOKEN = -1


@pytest.fixture(scope="module")
def engine(base_folder: Path) -> Iterator[Engine]:
    contract = derive_renderer(base_folder, None).contract
    engine = create_engine(base_folder, contract, ServingConfig(max_batch_size=3))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def decode_greedily(base_folder: Path) -> Callable[..., list[int]]:
    """Reference: one forward pass per token, without a cache, without padding."""
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    contract = derive_renderer(base_folder, None).contract

    def decode(prompt: list[int], num_tokens: int, stop_token_id: int = contract.stop_token_id) -> list[int]:
        token_ids = list(prompt)
        for _ in range(num_tokens):
            token_id = int(model(torch.tensor([token_ids])).logits[0, -1].argmax())
            if token_id == stop_token_id:
                break
            token_ids.append(token_id)
        return token_ids[len(prompt) :]

    return decode


def test_shared_prefix_does_not_change_completions(engine: Engine, decode_greedily: Callable[..., list[int]]) -> None:
    prefix = list(range(5, 45))
    prompts = [[*prefix, *rest] for rest in ([30], [31, 32, 33], [34, 35])]
    assert PromptBatch(prompts, 0).num_cached(PrefixCache(0)) == len(prefix)
    completions = generate_all(engine, prompts, SamplingParams(6))
    assert [completion.token_ids for completion in completions] == [decode_greedily(prompt, 6) for prompt in prompts]


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([[1] * 90], 0),
        ([[1] * 90, [1] * 90], 89),
        ([[1] * 80 + [2], [1] * 80 + [3]], 80),
        # Too short to pay off for two prompts, but not for sixteen.
        ([[1] * 12, [1] * 19], 0),
        ([[1] * 12, [1] * 19] * 8, 11),
    ],
)
def test_shared_prefix_leaves_one_token_of_each_prompt(prompts: list[list[int]], length: int) -> None:
    assert PromptBatch(prompts, 0).num_cached(PrefixCache(0)) == length


def test_stop_token_ends_the_completion_and_is_excluded(
    base_folder: Path, decode_greedily: Callable[..., list[int]]
) -> None:
    contract = derive_renderer(base_folder, None).contract
    [first_token_id] = decode_greedily(PROMPTS[0], 1, NO_STOP_TOKEN)
    assert first_token_id != contract.stop_token_id
    assert first_token_id < AutoModelForCausalLM.from_pretrained(base_folder).config.vocab_size
    engine = create_engine(base_folder, replace(contract, stop_token_id=first_token_id), ServingConfig())
    assert generate_all(engine, PROMPTS[:1], SamplingParams(5)) == [Completion([], "stop")]
    engine.close()


def test_generate_all_takes_sampling_params_per_prompt(engine: Engine) -> None:
    completions = generate_all(engine, PROMPTS[:2], [SamplingParams(2), SamplingParams(5)])
    assert [len(completion.token_ids) for completion in completions] == [2, 5]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_output_that_is_not_finite_is_an_error(base_folder: Path, tmp_path: Path, temperature: float) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base_folder, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    model.save_pretrained(folder)
    engine = create_engine(folder, derive_renderer(folder, None).contract, ServingConfig())
    try:
        with pytest.raises(RuntimeError, match="the model's output is not finite"):
            generate_all(engine, PROMPTS[:1], SamplingParams(2, temperature=temperature))
        assert engine.is_alive
    finally:
        engine.close()


def test_request_that_can_not_be_begun_ends_alone(engine: Engine) -> None:
    with pytest.raises(RuntimeError, match="failed on 1 of 2 prompts: TypeError"):
        generate_all(engine, [PROMPTS[0], ["no id"]], SamplingParams(2))  # type: ignore[list-item]
    assert engine.is_alive
    assert len(generate_all(engine, PROMPTS[:1], SamplingParams(2))) == 1


def test_error_of_a_gpu_ends_all_requests_and_the_engine(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_engine(base_folder, derive_renderer(base_folder, None).contract, ServingConfig(max_batch_size=1))

    # Only a GPU raises it.
    def fail(batch: ContinuousBatch) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(ContinuousBatch, "step", fail)
    try:
        # The first is being answered, the second is queued.
        with pytest.raises(RuntimeError, match="failed on 2 of 2 prompts: AcceleratorError: CUDA error"):
            generate_all(engine, PROMPTS[:2], SamplingParams(2))
        with pytest.raises(RuntimeError, match="AcceleratorError: CUDA error"):
            generate_all(engine, PROMPTS[:1], SamplingParams(2))
        assert not engine.is_alive
    finally:
        engine.close()
