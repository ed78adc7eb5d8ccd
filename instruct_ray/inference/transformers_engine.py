"""The engine that runs anywhere transformers does: requests that wait are answered together, token by token."""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.generation import BaseStreamer, StoppingCriteria, StoppingCriteriaList

from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.inference.engine import FinishReason, GenerationRequest
from instruct_ray.inference.loading import load_for_inference

# B = requests in the batch, T = tokens so far, the prompts padded on the left

logger = logging.getLogger(__name__)
# How long the first request of a batch waits for company.
BATCH_WAIT_SECONDS = 0.005
# A prefix that all prompts share is computed once if that spares so many tokens: its pass reads all weights once more.
MIN_TOKENS_SAVED = 64


class TransformersEngine:
    """Static batches: one runs to its longest answer's end, then those that wait with equal sampling form the next."""

    def __init__(self, folder: Path, contract: PromptContract, max_batch_size: int) -> None:
        self._model = load_for_inference(folder)
        self._contract = contract
        self._max_batch_size = max_batch_size
        self._waiting: list[GenerationRequest] = []
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request; returns at once."""
        with self._changed:
            self._waiting.append(request)
            self._changed.notify()

    def close(self) -> None:
        """Answer what waits and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def max_context(self) -> int:
        """Most tokens of prompt and answer together."""
        return int(self._model.config.max_position_embeddings)

    @property
    def is_alive(self) -> bool:
        """Whether requests are being answered."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while batch := self._next_batch():
            deliveries = _TokenStreamer(batch, self._contract.stop_token_id)
            try:
                self._answer(batch, deliveries)
            except Exception:  # whatever it was, it fails these requests and not the engine that others wait for
                logger.exception("a batch of %d requests failed", len(batch))
                deliveries.fail()

    def _next_batch(self) -> list[GenerationRequest]:
        """The oldest waiting request and those that may share its batch; empty when closing and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._changed.wait_for(lambda: self._closing, timeout=BATCH_WAIT_SECONDS)
            sharing = [request for request in self._waiting if _can_batch_together(request, self._waiting[0])]
            batch = sharing[: self._max_batch_size]
            self._waiting = [request for request in self._waiting if not any(request is taken for taken in batch)]
        return batch

    @torch.inference_mode()
    def _answer(self, batch: Sequence[GenerationRequest], deliveries: "_TokenStreamer") -> None:
        pad, stop = self._contract.pad_token_id, self._contract.stop_token_id
        prompts = [list(request.prompt_ids) for request in batch]
        num_shared = shared_prefix_length(prompts)
        longest = max(map(len, prompts))
        # The padding stands between what all share and the rest, so that the shared part is computed once for all.
        padded = [ids[:num_shared] + [pad] * (longest - len(ids)) + ids[num_shared:] for ids in prompts]
        mask = [[1] * num_shared + [0] * (longest - len(ids)) + [1] * (len(ids) - num_shared) for ids in prompts]
        sampling = batch[0].sampling
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        settings: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            settings = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        device = self._model.device
        self._model.generate(
            torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=GenerationConfig(
                max_new_tokens=max(request.sampling.max_new_tokens for request in batch),
                eos_token_id=stop,
                pad_token_id=pad,
                **settings,
            ),
            past_key_values=self._prefix_cache(prompts[0][:num_shared], len(batch)),
            streamer=deliveries,
            stopping_criteria=StoppingCriteriaList([_Finished(deliveries)]),
        )

    def _prefix_cache(self, prefix: list[int], batch_size: int) -> DynamicCache | None:
        """Keys and values of a prefix, computed once and repeated for every row of the batch."""
        if not prefix:
            return None
        cache = DynamicCache(config=self._model.config)
        ids = torch.tensor([prefix], device=self._model.device)
        self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(batch_size)
        return cache


def shared_prefix_length(prompts: Sequence[list[int]]) -> int:
    """Tokens that all prompts begin with; 0 if that is not worth a pass of its own. Each keeps a token for itself."""
    if len(prompts) == 1:
        return 0
    shortest = min(map(len, prompts)) - 1
    first, last = min(prompts), max(prompts)
    length = next((i for i in range(shortest) if first[i] != last[i]), shortest)
    return length if length * (len(prompts) - 1) >= MIN_TOKENS_SAVED else 0


def _can_batch_together(request: GenerationRequest, other: GenerationRequest) -> bool:
    """Greedy requests share a batch, and sampled ones with equal settings; a seeded one runs alone to be repeatable."""
    if request is other:
        return True
    mine, theirs = request.sampling, other.sampling
    if mine.temperature == theirs.temperature == 0:
        return True
    equal = (mine.temperature, mine.top_p) == (theirs.temperature, theirs.top_p)
    return equal and mine.seed is None and theirs.seed is None


class _TokenStreamer(BaseStreamer):
    """Hands each new token to its request until that one is finished."""

    def __init__(self, batch: Sequence[GenerationRequest], stop_token_id: int) -> None:
        self._batch = batch
        self._stop_token_id = stop_token_id
        self._counts = [0] * len(batch)
        self.finished = [False] * len(batch)

    def put(self, value: Tensor) -> None:
        if value.dim() == 2:
            return  # the prompts
        for row, token in enumerate(value.tolist()):
            if not self.finished[row]:
                self._deliver(row, token)

    def _deliver(self, row: int, token: int) -> None:
        request = self._batch[row]
        if request.cancelled.is_set():
            self._finish(row, "cancelled")
        elif token == self._stop_token_id:
            self._finish(row, "stop")
        else:
            request.on_token(token)
            self._counts[row] += 1
            if self._counts[row] == request.sampling.max_new_tokens:
                self._finish(row, "length")

    def _finish(self, row: int, reason: FinishReason) -> None:
        self.finished[row] = True
        self._batch[row].on_finish(reason)

    def fail(self) -> None:
        """End what is not finished with an error."""
        for row, finished in enumerate(self.finished):
            if not finished:
                self._finish(row, "error")

    def end(self) -> None:
        assert all(self.finished), "generate ended before every request did"


class _Finished(StoppingCriteria):
    """Rows that need no further token: their limit is reached or they were cancelled."""

    def __init__(self, deliveries: _TokenStreamer) -> None:
        self._deliveries = deliveries

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.tensor(self._deliveries.finished, device=input_ids.device)
