"""What every engine says of its prefix cache: how many tokens of a prompt it did not compute again."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.inference.engine import GenerationRequest, SamplingParams
from instruct_ray.inference.engines import create_engine
from tests import tiny
from tests.inference.vllm_mark import NEEDS_VLLM

INSTRUCTION = [5 + 7 * number % 200 for number in range(128)]
OTHER = [9, *INSTRUCTION]
Ask = Callable[..., list[int]]


@pytest.fixture(params=["transformers", pytest.param("vllm", marks=NEEDS_VLLM)])
def ask(
    request: pytest.FixtureRequest, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[str, Ask]]:
    """The kind of an engine, and what it says after it has answered some prompts together."""
    base = tiny.save_base(tmp_path / "base", tokenizer, head_dim=32)
    engine = create_engine(base, derive_renderer(base, None).contract, ServingConfig(engine=request.param))

    def answer(*prompts: list[int]) -> list[int]:
        finished = threading.Semaphore(0)
        requests = [
            GenerationRequest(prompt, SamplingParams(1), lambda token: None, lambda reason: finished.release())
            for prompt in prompts
        ]
        for one in requests:
            engine.submit(one)
        for _ in requests:
            finished.acquire()
        return [one.num_cached_tokens for one in requests]

    yield request.param, answer
    engine.close()


def test_requests_are_told_what_of_their_prompts_was_cached(ask: tuple[str, Ask]) -> None:
    kind, answer = ask
    assert answer([*INSTRUCTION, 1, 2]) == [0]
    # The transformers engine keeps what comes a second time.
    assert answer([*INSTRUCTION, 3]) == [0 if kind == "transformers" else len(INSTRUCTION)]
    assert answer([*INSTRUCTION, 4]) == [len(INSTRUCTION)]


def test_what_a_batch_shares_was_not_in_the_cache(ask: tuple[str, Ask]) -> None:
    kind, answer = ask
    counts = answer([*OTHER, 1], [*OTHER, 2])
    assert counts[0] == 0 and (counts[1] == 0 or kind == "vllm")
