"""Errors of `generate_all`."""

from typing import cast

import pytest

from instruct_ray.inference.engine import Engine, GenerationRequest, SamplingParams, generate_all


class EngineWithoutMemory:
    """Fails as the engines do when memory runs out."""

    def submit(self, request: GenerationRequest) -> None:
        """End the request."""
        request.error = "OutOfMemoryError: CUDA out of memory"
        request.on_finish("error")


def test_memory_that_ran_out_is_told_apart() -> None:
    with pytest.raises(MemoryError, match="the engine failed on 1 of 1 prompts: OutOfMemoryError"):
        generate_all(cast(Engine, EngineWithoutMemory()), [[5, 6]], SamplingParams(2))
