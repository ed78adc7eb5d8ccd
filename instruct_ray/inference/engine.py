"""Prompt tokens -> answer tokens: what every engine offers, to evaluation and endpoint alike."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    seed: int | None = None


@dataclass
class GenerationRequest:
    """One answer in the making. `on_token` and `on_finish` are called from the engine's thread."""

    prompt_ids: Sequence[int]
    sampling: SamplingParams
    on_token: Callable[[int], None]
    """Called with each token of the answer; the stop token is not one of them."""
    on_finish: Callable[[FinishReason], None]
    """Called once, last."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set it to end the answer early."""


@dataclass(frozen=True)
class Completion:
    """A finished answer."""

    token_ids: list[int]
    finish_reason: FinishReason


class Engine(Protocol):
    """A loaded model that answers requests, many at a time."""

    @property
    def max_context(self) -> int:
        """Most tokens of prompt and answer together."""

    @property
    def is_alive(self) -> bool:
        """Whether requests are being answered."""

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request; returns at once."""

    def close(self) -> None:
        """Finish what runs and stop."""


def generate_all(engine: Engine, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> list[Completion]:
    """Answer all prompts and wait for the last; the order is that of the prompts.

    Raises:
        RuntimeError: the engine failed on one.
    """
    return generate_each(engine, [(prompt, sampling) for prompt in prompts])


def generate_each(engine: Engine, asked: Sequence[tuple[Sequence[int], SamplingParams]]) -> list[Completion]:
    """As `complete`, each prompt with its own sampling."""
    answers: list[list[int]] = [[] for _ in asked]
    reasons: list[FinishReason] = ["error"] * len(asked)
    waiting = threading.Semaphore(0)

    def finish(index: int, reason: FinishReason) -> None:
        reasons[index] = reason
        waiting.release()

    for index, (prompt, sampling) in enumerate(asked):
        engine.submit(GenerationRequest(prompt, sampling, answers[index].append, partial(finish, index)))
    for _ in asked:
        waiting.acquire()
    if "error" in reasons:
        raise RuntimeError(f"the engine failed on {reasons.count('error')} of {len(asked)} prompts; see its log")
    return [Completion(answer, reason) for answer, reason in zip(answers, reasons, strict=True)]
