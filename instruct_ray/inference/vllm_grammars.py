"""Grammars in vLLM: leaves each completion the tokens that its grammar allows. Runs in vLLM's worker processes.

vLLM's own structured outputs need a tokenizer there, and take its end token for the one that ends an answer. This uses
the same decoder as the transformers engine, with the stop token of the contract.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from instruct_ray.base_model.tokenizer import load_tokenizer
from instruct_ray.inference.grammars import Grammars, GrammarState
from instruct_ray.inference.vllm_orphans import end_with

logger = logging.getLogger(__name__)
# Key of the grammar in the `extra_args` of a request.
GRAMMAR = "grammar"


class GrammarProcessor(AdapterLogitsProcessor):
    """The logits processor of all requests."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        settings = vllm_config.additional_config
        # The only place where vLLM runs code of others in these processes.
        end_with(settings["engine_pid"])
        self._stop_token_id: int = settings["stop_token_id"]
        # Read now: the folder may be temporary.
        tokenizer = load_tokenizer(Path(settings["tokenizer_dir"]))
        self._grammars = Grammars(tokenizer, self._stop_token_id, vllm_config.model_config.get_vocab_size())

    def is_argmax_invariant(self) -> bool:
        """Greedy decoding needs it too."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> "RowGrammar | None":
        """The state of a request's grammar; None if it has none."""
        grammar = (params.extra_args or {}).get(GRAMMAR)
        # The engine has checked that it can be used.
        return None if grammar is None else RowGrammar(self._grammars.start(grammar), self._stop_token_id)


class RowGrammar:
    """Which tokens a completion may go on with."""

    def __init__(self, state: GrammarState, stop_token_id: int) -> None:
        self._state, self._stop_token_id = state, stop_token_id
        self._num_read = 0
        self._is_broken = False

    def __call__(self, output_ids: list[int], logits_V: Tensor) -> Tensor:
        """Set the logits of the other tokens to minus infinity.

        Args:
            output_ids: the completion so far. It may be called twice with the same, while a prompt is read in parts.
            logits_V: of the next token; shape (V,). Changed.
        """
        logits_V.masked_fill_(~self._allowed(output_ids, len(logits_V)).to(logits_V.device), -torch.inf)
        return logits_V

    def _allowed(self, output_ids: list[int], vocab_size: int) -> Tensor:
        try:
            while self._num_read < len(output_ids) and not self._is_broken:
                self._state.advance(output_ids[self._num_read])
                self._num_read += 1
            if not self._is_broken:
                return self._state.allowed()
        except ValueError:
            # An exception here would end all requests. The engine sees that this completion does not fit its grammar.
            logger.exception("a grammar can't go on")
            self._is_broken = True
        return torch.arange(vocab_size) == self._stop_token_id
