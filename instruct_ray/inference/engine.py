"""The engine interface: prompt token ids in, completion token ids out."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

# "length": max_new_tokens were generated; "cancelled": the client no longer wants the completion.
FinishReason = Literal["stop", "length", "cancelled", "error"]
# How `GenerationRequest.error` begins when memory ran out: the name of torch's exception.
OUT_OF_MEMORY = "OutOfMemoryError"

# Below it, dividing logits by the temperature could overflow, and no other token would be sampled anyway.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of a completion are chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    """0, or anything below MIN_TEMPERATURE, is greedy decoding."""
    top_p: float = 1.0
    seed: int | None = None
    """Makes a sampled completion repeatable, whatever other requests share its batch."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that the completion has."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of each token, for each time that the completion has it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of some tokens, by token id."""
    num_top_log_probs: int | None = None
    """How many of the most likely tokens to report at each position, besides the chosen one; None reports nothing."""
    grammar: str | None = None
    """What the completion must be, see `Grammars`; None leaves it free."""

    @property
    def is_greedy(self) -> bool:
        """Whether each token is the most likely one."""
        return self.temperature < MIN_TEMPERATURE


@dataclass(frozen=True)
class TokenLogProbs:
    """Log-probabilities at one position, as the model gives them: before temperature, penalties, bias and grammar."""

    chosen: float
    """Of the token that the completion has."""
    top: tuple[tuple[int, float], ...]
    """The most likely tokens, best first: token id and log-probability."""


@dataclass(frozen=True)
class Token:
    """A token of a completion."""

    id: int
    log_probs: TokenLogProbs | None = None
    """None if the request asks for none."""


@dataclass
class GenerationRequest:
    """A prompt and the callbacks that receive its completion; the engine's thread calls them."""

    prompt_ids: Sequence[int]
    sampling: SamplingParams
    on_token: Callable[[Token], None]
    """Called with each new token except the stop token."""
    on_finish: Callable[[FinishReason], None]
    """Called exactly once, after the last token."""
    adapter: str | None = None
    """Name of the adapter that answers, of an engine that has several; None is the model itself."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set by the caller to stop the generation early."""
    error: str | None = None
    """Set by the engine before it finishes the request with "error": what failed."""
    num_cached_tokens: int = 0
    """Set by the engine before the first token: how many tokens of the prompt it had in its cache."""


@dataclass(frozen=True)
class Completion:
    """A finished completion, without its stop token."""

    tokens: list[Token]
    finish_reason: FinishReason

    @property
    def token_ids(self) -> list[int]:
        """The ids of its tokens."""
        return [token.id for token in self.tokens]


class Engine(Protocol):
    """A loaded model that generates completions for many requests concurrently."""

    @property
    def max_context(self) -> int:
        """Maximum number of tokens of prompt and completion together."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the model can generate."""

    @property
    def is_alive(self) -> bool:
        """Whether the engine still processes requests."""

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request without waiting for its completion."""

    def close(self) -> None:
        """Process the queued requests, then stop."""


class UnsupportedAdapterError(Exception):
    """An engine can't compute an adapter beside others; merged into a model of its own it can be computed."""


class AdapterEngine(Engine, Protocol):
    """An engine whose model is the base of adapters, which come and go while it answers requests."""

    def add_adapter(self, name: str, adapter_dir: Path) -> None:
        """Load an adapter. The folder may be temporary.

        Raises:
            UnsupportedAdapterError: the engine can't compute it.
        """

    def remove_adapter(self, name: str) -> None:
        """Begin the queued requests for an adapter, then forget it."""


def generate_all(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams | Sequence[SamplingParams],
    *,
    num_at_once: int | None = None,
) -> list[Completion]:
    """Generate the completions of all prompts and wait for them.

    Args:
        engine: the engine to use.
        prompts: token ids of each prompt.
        sampling: parameters for all prompts, or one entry per prompt.
        num_at_once: the most requests that the engine has at a time; None submits all at once.

    Returns:
        One completion per prompt, in the order of the prompts.

    Raises:
        RuntimeError: the engine failed on at least one prompt; names the first error.
        MemoryError: the same, since memory ran out.
    """
    params = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
    tokens: list[list[Token]] = [[] for _ in prompts]
    finish_reasons: list[FinishReason] = ["error"] * len(prompts)
    num_finished = threading.Semaphore(0)
    free = threading.Semaphore(num_at_once or max(len(prompts), 1))

    def finish(index: int, reason: FinishReason) -> None:
        finish_reasons[index] = reason
        free.release()
        num_finished.release()

    requests = [
        GenerationRequest(prompt_ids, prompt_params, tokens[index].append, partial(finish, index))
        for index, (prompt_ids, prompt_params) in enumerate(zip(prompts, params, strict=True))
    ]
    for request in requests:
        free.acquire()
        engine.submit(request)
    for _ in prompts:
        num_finished.acquire()
    if num_failed := finish_reasons.count("error"):
        [first_error, *_] = [request.error for request in requests if request.error]
        message = f"the engine failed on {num_failed} of {len(prompts)} prompts: {first_error}"
        raise MemoryError(message) if first_error.startswith(OUT_OF_MEMORY) else RuntimeError(message)
    return [Completion(found, reason) for found, reason in zip(tokens, finish_reasons, strict=True)]
