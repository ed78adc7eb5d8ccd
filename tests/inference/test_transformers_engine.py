"""The engine: what it answers is what plain generate answers, alone or in company."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.inference.engine import Completion, FinishReason, GenerationRequest, SamplingParams, generate_all
from instruct_ray.inference.transformers_engine import TransformersEngine, shared_prefix_length

PROMPTS = [[5, 6, 7], [9, 10, 11, 12, 13], [20], [21, 22, 23, 24]]


@pytest.fixture(scope="module")
def engine(base_folder: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(base_folder, derive_renderer(base_folder, None).contract, max_batch_size=3)
    yield engine
    engine.close()


def plain(base_folder: Path, prompt: list[int], num_tokens: int, stop: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    ids = list(prompt)
    for _ in range(num_tokens):
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_answers_equal_plain_greedy_decoding(engine: TransformersEngine, base_folder: Path) -> None:
    stop = derive_renderer(base_folder, None).contract.stop_token_id
    answers = generate_all(engine, PROMPTS, SamplingParams(6))
    assert [answer.token_ids for answer in answers] == [plain(base_folder, prompt, 6, stop) for prompt in PROMPTS]


def test_a_shared_prefix_changes_no_answer(engine: TransformersEngine, base_folder: Path) -> None:
    stop = derive_renderer(base_folder, None).contract.stop_token_id
    prefix = list(range(5, 45))
    prompts = [[*prefix, *rest] for rest in ([30], [31, 32, 33], [34, 35])]
    assert shared_prefix_length(prompts) == len(prefix)
    answers = generate_all(engine, prompts, SamplingParams(6))
    assert [answer.token_ids for answer in answers] == [plain(base_folder, prompt, 6, stop) for prompt in prompts]


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([[1] * 90], 0),
        ([[1] * 90, [1] * 90], 89),
        ([[1] * 80 + [2], [1] * 80 + [3]], 80),
        # Not worth a pass for two prompts, but for many.
        ([[1] * 12, [1] * 19], 0),
        ([[1] * 12, [1] * 19] * 8, 11),
    ],
)
def test_a_prefix_leaves_every_prompt_a_token(prompts: list[list[int]], length: int) -> None:
    assert shared_prefix_length(prompts) == length


def test_the_stop_token_ends_an_answer_and_is_no_part_of_it(base_folder: Path) -> None:
    renderer = derive_renderer(base_folder, None)
    [first] = plain(base_folder, PROMPTS[0], 1, -1)
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    assert first != renderer.contract.stop_token_id
    contract = type(renderer.contract)(**{**vars(renderer.contract), "stop_token_id": first})
    engine = TransformersEngine(base_folder, contract, max_batch_size=2)
    assert generate_all(engine, PROMPTS[:1], SamplingParams(5)) == [Completion([], "stop")]
    engine.close()
    assert model.config.vocab_size > first


def test_every_request_has_its_own_limit(engine: TransformersEngine) -> None:
    finished: list[tuple[int, FinishReason]] = []
    done = threading.Semaphore(0)
    counts = [0, 0]

    def request(index: int, limit: int) -> GenerationRequest:
        def count(token: int) -> None:
            counts[index] += 1

        def finish(reason: FinishReason) -> None:
            finished.append((index, reason))
            done.release()

        return GenerationRequest(PROMPTS[index], SamplingParams(limit), count, finish)

    engine.submit(request(0, 2))
    engine.submit(request(1, 5))
    assert done.acquire(timeout=60)
    assert done.acquire(timeout=60)
    assert counts == [2, 5]
    assert finished == [(0, "length"), (1, "length")]


def test_a_cancelled_request_ends_early(engine: TransformersEngine) -> None:
    done = threading.Event()
    tokens: list[int] = []
    reasons: list[FinishReason] = []

    def on_token(token: int) -> None:
        tokens.append(token)
        request.cancelled.set()

    def on_finish(reason: FinishReason) -> None:
        reasons.append(reason)
        done.set()

    request = GenerationRequest(PROMPTS[0], SamplingParams(200), on_token, on_finish)
    engine.submit(request)
    assert done.wait(60)
    assert reasons == ["cancelled"]
    assert len(tokens) == 1


def test_a_seed_repeats_a_sampled_answer(engine: TransformersEngine) -> None:
    sampling = SamplingParams(8, temperature=1.0, seed=7)
    assert generate_all(engine, PROMPTS[:1], sampling) == generate_all(engine, PROMPTS[:1], sampling)
    assert generate_all(engine, PROMPTS[:1], sampling) != generate_all(
        engine, PROMPTS[:1], SamplingParams(8, 1.0, seed=8)
    )


def test_a_request_that_fails_leaves_the_engine_working(engine: TransformersEngine) -> None:
    with pytest.raises(RuntimeError, match="the engine failed on 1 of 1 prompts"):
        generate_all(engine, [[10**9]], SamplingParams(2))
    assert engine.is_alive
    assert len(generate_all(engine, PROMPTS[:1], SamplingParams(2))[0].token_ids) == 2
