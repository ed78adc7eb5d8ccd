"""A batch that is answered as a whole by transformers' `generate`: for models whose batches no request can join.

It ends when its longest completion ends; requests that arrive meanwhile wait for the next one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.inference.adapters import AdapterSwitch
from instruct_ray.inference.batch_rules import BatchRules
from instruct_ray.inference.engine import GenerationRequest
from instruct_ray.inference.prefix_cache import PrefixCache
from instruct_ray.inference.prompt_batch import PromptBatch
from instruct_ray.inference.running_batch import BatchRow, RowsFinished, TokenChooser, TokenStreamer


class StaticBatch:
    """Answers one batch after the other."""

    def __init__(self, model: Any, contract: PromptContract, rules: BatchRules, switch: AdapterSwitch) -> None:
        self._model, self._contract, self._rules, self._switch = model, contract, rules, switch
        # Its file may hold a repetition penalty and the like, which `generate` would apply to every request.
        model.generation_config = GenerationConfig()

    @property
    def rows(self) -> list[BatchRow]:
        """None: all rows are finished when `add` returns."""
        return []

    def step(self) -> None:
        """Nothing: there are no rows."""

    @torch.inference_mode()
    def add(self, rows: Sequence[BatchRow]) -> None:
        """Answer some rows of one variant of the model, to their ends."""
        variant = rows[0].variant
        with self._switch.use([variant.adapter], self._model.device):
            self._answer(rows, variant.prefixes)

    def _answer(self, rows: Sequence[BatchRow], prefixes: PrefixCache) -> None:
        requests = [row.request for row in rows]
        prompts = PromptBatch([list(request.prompt_ids) for request in requests], self._contract.pad_token_id)
        device = self._model.device
        if self._rules.is_too_long(requests[0]):
            # A short forward pass resets frequencies that an earlier long request has changed.
            self._model(torch.tensor([prompts.prompts[0][:1]], device=device), use_cache=False)
        prefix = None
        # A model may compute a long request differently from its first token on.
        if self._rules.shares_prefix and not self._rules.is_too_long(requests[0]):
            prefix = prompts.compute_prefix_cache(self._model, prefixes)
        for request, num_reused in zip(requests, prompts.num_reused(prefix), strict=True):
            request.num_cached_tokens = num_reused
        self._model.generate(
            prompts.input_ids_BT.to(device),
            attention_mask=prompts.attention_mask_BT.to(device),
            generation_config=self._generation_config(max(request.sampling.max_new_tokens for request in requests)),
            past_key_values=None if prefix is None else prefix.states,
            streamer=TokenStreamer(rows, self._contract.stop_token_id),
            logits_processor=LogitsProcessorList([TokenChooser(rows)]),
            stopping_criteria=StoppingCriteriaList([RowsFinished(rows)]),
        )

    def _generation_config(self, max_new_tokens: int) -> GenerationConfig:
        """Build the config of a batch. `generate` takes the token that the row's sampler has chosen."""
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=self._contract.stop_token_id,
            pad_token_id=self._contract.pad_token_id,
            # The config of a model that was trained without a cache often says false, which generate would follow.
            use_cache=True,
        )


def take_while_it_fits(requests: Sequence[GenerationRequest], max_context: int) -> list[GenerationRequest]:
    """Take the first request, and each further one that keeps the batch within the context.

    All rows of a batch are computed until its longest completion ends, also those that are finished: past its last
    learned position a model fails.
    """
    batch: list[GenerationRequest] = []
    longest_prompt = longest_completion = 0
    for request in requests:
        prompt = max(longest_prompt, len(request.prompt_ids))
        completion = max(longest_completion, request.sampling.max_new_tokens)
        if not batch or prompt + completion <= max_context:
            batch.append(request)
            longest_prompt, longest_completion = prompt, completion
    return batch
