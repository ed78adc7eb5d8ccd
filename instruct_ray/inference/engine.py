"""The engine interface: prompt token ids in, completion token ids out."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

# "length": max_new_tokens were generated; "cancelled": the client no longer wants the completion.
FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of a completion are chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    seed: int | None = None
    """Makes a sampled completion repeatable."""


@dataclass
class GenerationRequest:
    """A prompt and the callbacks that receive its completion; the engine's thread calls them."""

    prompt_ids: Sequence[int]
    sampling: SamplingParams
    on_token: Callable[[int], None]
    """Called with each new token except the stop token."""
    on_finish: Callable[[FinishReason], None]
    """Called exactly once, after the last token."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set by the caller to stop the generation early."""


@dataclass(frozen=True)
class Completion:
    """A finished completion, without its stop token."""

    token_ids: list[int]
    finish_reason: FinishReason


class Engine(Protocol):
    """A loaded model that generates completions for many requests concurrently."""

    @property
    def max_context(self) -> int:
        """Maximum number of tokens of prompt and completion together."""

    @property
    def is_alive(self) -> bool:
        """Whether the engine still processes requests."""

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request without waiting for its completion."""

    def close(self) -> None:
        """Process the queued requests, then stop."""


def generate_all(
    engine: Engine, prompts: Sequence[Sequence[int]], sampling: SamplingParams | Sequence[SamplingParams]
) -> list[Completion]:
    """Generate the completions of all prompts and wait for them.

    Args:
        engine: the engine to use.
        prompts: token ids of each prompt.
        sampling: parameters for all prompts, or one entry per prompt.

    Returns:
        One completion per prompt, in the order of the prompts.

    Raises:
        RuntimeError: the engine failed on at least one prompt.
    """
    params = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
    token_ids: list[list[int]] = [[] for _ in prompts]
    finish_reasons: list[FinishReason] = ["error"] * len(prompts)
    num_finished = threading.Semaphore(0)

    def finish(index: int, reason: FinishReason) -> None:
        finish_reasons[index] = reason
        num_finished.release()

    for index, (prompt_ids, prompt_params) in enumerate(zip(prompts, params, strict=True)):
        engine.submit(GenerationRequest(prompt_ids, prompt_params, token_ids[index].append, partial(finish, index)))
    for _ in prompts:
        num_finished.acquire()
    if num_failed := finish_reasons.count("error"):
        raise RuntimeError(f"the engine failed on {num_failed} of {len(prompts)} prompts; see its log")
    return [Completion(ids, reason) for ids, reason in zip(token_ids, finish_reasons, strict=True)]
