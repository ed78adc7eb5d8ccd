"""An engine on transformers' `generate`: static batches, with the prefix that all prompts share computed once.

It runs wherever transformers runs. A batch ends when its longest completion ends; requests that arrive meanwhile wait
for the next batch.
"""

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
from instruct_ray.inference.engine import FinishReason, GenerationRequest, SamplingParams
from instruct_ray.inference.loading import load_for_inference

# Shape suffixes: B = requests in the batch, T = tokens of the padded prompts

logger = logging.getLogger(__name__)
# How long the first request of a batch waits for more requests, in seconds.
BATCH_WAIT_SECONDS = 0.005
# Computing the shared prefix is a forward pass of its own, which pays off from about this many tokens saved.
MIN_TOKENS_SAVED = 64


class TransformersEngine:
    """Generates completions in static batches, in a thread of its own."""

    def __init__(self, model_dir: Path, contract: PromptContract, max_batch_size: int) -> None:
        self._model = load_for_inference(model_dir)
        self._contract = contract
        self._max_batch_size = max_batch_size
        self._queue: list[GenerationRequest] = []
        self._closing = False
        # Guards the two fields above.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request without waiting for its completion."""
        with self._changed:
            self._queue.append(request)
            self._changed.notify()

    def close(self) -> None:
        """Process the queued requests, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def max_context(self) -> int:
        """Maximum number of tokens of prompt and completion together."""
        return int(self._model.config.max_position_embeddings)

    @property
    def is_alive(self) -> bool:
        """Whether the engine still processes requests."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while batch := self._next_batch():
            streamer = _TokenStreamer(batch, self._contract.stop_token_id)
            try:
                self._generate(batch, streamer)
            except Exception:  # any failure ends the requests of this batch, never the engine
                logger.exception("a batch of %d requests failed", len(batch))
                streamer.fail()

    def _next_batch(self) -> list[GenerationRequest]:
        """Wait for requests and take the next batch from the queue; empty if the engine is closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            self._changed.wait_for(lambda: self._closing, timeout=BATCH_WAIT_SECONDS)
            compatible = [request for request in self._queue if _can_batch_together(self._queue[0], request)]
            batch = compatible[: self._max_batch_size]
            # By identity: two equal requests are still two requests.
            self._queue = [request for request in self._queue if not any(request is taken for taken in batch)]
        return batch

    @torch.inference_mode()
    def _generate(self, batch: Sequence[GenerationRequest], streamer: "_TokenStreamer") -> None:
        prompts = [list(request.prompt_ids) for request in batch]
        num_shared = shared_prefix_length(prompts)
        input_ids_BT, attention_mask_BT = _pad_prompts(prompts, num_shared, self._contract.pad_token_id)
        seed = batch[0].sampling.seed
        if seed is not None:
            torch.manual_seed(seed)
        device = self._model.device
        self._model.generate(
            input_ids_BT.to(device),
            attention_mask=attention_mask_BT.to(device),
            generation_config=self._generation_config([request.sampling for request in batch]),
            past_key_values=self._prefix_cache(prompts[0][:num_shared], len(batch)),
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([_RequestFinished(streamer)]),
        )

    def _generation_config(self, sampling: Sequence[SamplingParams]) -> GenerationConfig:
        """Build the config of a batch, whose requests differ in `max_new_tokens` only."""
        first = sampling[0]
        settings: dict[str, Any] = {"do_sample": False}
        if first.temperature > 0:
            settings = {"do_sample": True, "temperature": first.temperature, "top_p": first.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=max(params.max_new_tokens for params in sampling),
            eos_token_id=self._contract.stop_token_id,
            pad_token_id=self._contract.pad_token_id,
            **settings,
        )

    def _prefix_cache(self, prefix: list[int], batch_size: int) -> DynamicCache | None:
        """Compute the keys and values of a prefix once and repeat them for the batch; None without a prefix."""
        if not prefix:
            return None
        cache = DynamicCache(config=self._model.config)
        input_ids = torch.tensor([prefix], device=self._model.device)
        self._model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(batch_size)
        return cache


def shared_prefix_length(prompts: Sequence[list[int]]) -> int:
    """Count the leading tokens that all prompts share; 0 if computing them once saves too little.

    At least one token of each prompt is left out, because the model needs an input to predict the next token from.
    """
    if len(prompts) == 1:
        return 0
    limit = min(map(len, prompts)) - 1
    # The smallest and the largest prompt differ the earliest.
    first, last = min(prompts), max(prompts)
    length = next((i for i in range(limit) if first[i] != last[i]), limit)
    return length if length * (len(prompts) - 1) >= MIN_TOKENS_SAVED else 0


def _pad_prompts(prompts: Sequence[list[int]], num_shared: int, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Pad prompts to equal length, after their shared prefix; returns input_ids_BT and attention_mask_BT."""
    max_length = max(map(len, prompts))
    input_ids, attention_mask = [], []
    for ids in prompts:
        num_padding = max_length - len(ids)
        input_ids.append(ids[:num_shared] + [pad_token_id] * num_padding + ids[num_shared:])
        attention_mask.append([1] * num_shared + [0] * num_padding + [1] * (len(ids) - num_shared))
    return torch.tensor(input_ids), torch.tensor(attention_mask)


def _can_batch_together(first: GenerationRequest, second: GenerationRequest) -> bool:
    """Whether two requests can share a batch: both greedy, or sampled with equal settings and no seed.

    A request with a seed runs alone, because the other requests of a batch would change what it samples.
    """
    if first is second:
        return True
    a, b = first.sampling, second.sampling
    if a.temperature == b.temperature == 0:
        return True
    return (a.temperature, a.top_p) == (b.temperature, b.top_p) and a.seed is None and b.seed is None


class _TokenStreamer(BaseStreamer):
    """Passes each new token to its request, until the request is finished."""

    def __init__(self, batch: Sequence[GenerationRequest], stop_token_id: int) -> None:
        self._batch = batch
        self._stop_token_id = stop_token_id
        self._num_tokens = [0] * len(batch)
        self.finished = [False] * len(batch)

    def put(self, value: Tensor) -> None:
        if value.dim() == 2:
            return  # generate streams the prompts first
        for index, token_id in enumerate(value.tolist()):
            if not self.finished[index]:
                self._pass_on(index, token_id)

    def _pass_on(self, index: int, token_id: int) -> None:
        request = self._batch[index]
        if request.cancelled.is_set():
            self._finish(index, "cancelled")
        elif token_id == self._stop_token_id:
            self._finish(index, "stop")
        else:
            request.on_token(token_id)
            self._num_tokens[index] += 1
            if self._num_tokens[index] == request.sampling.max_new_tokens:
                self._finish(index, "length")

    def _finish(self, index: int, reason: FinishReason) -> None:
        self.finished[index] = True
        self._batch[index].on_finish(reason)

    def fail(self) -> None:
        """Finish all unfinished requests with an error."""
        for index, finished in enumerate(self.finished):
            if not finished:
                self._finish(index, "error")

    def end(self) -> None:
        assert all(self.finished), "generate ended before every request did"


class _RequestFinished(StoppingCriteria):
    """Stops the rows of a batch whose request is finished: its limit is reached, or it was cancelled."""

    def __init__(self, streamer: _TokenStreamer) -> None:
        self._streamer = streamer

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.tensor(self._streamer.finished, device=input_ids.device)
