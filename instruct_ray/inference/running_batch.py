"""The requests of one batch while transformers' `generate` runs: chooses each row's token, passes it on, ends rows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation import BaseStreamer, LogitsProcessor, StoppingCriteria

from instruct_ray.errors import one_line
from instruct_ray.inference.adapters import Adapter
from instruct_ray.inference.engine import FinishReason, GenerationRequest, Token
from instruct_ray.inference.prefix_cache import PrefixCache
from instruct_ray.inference.row_sampler import RowSampler

logger = logging.getLogger(__name__)
MAX_ERROR_CHARACTERS = 300

# Shape suffixes: B = rows of the batch, V = tokens of the vocabulary


@dataclass(frozen=True, eq=False)
class ModelVariant:
    """What computes a row: the model, with an adapter or without."""

    adapter: Adapter | None
    prefixes: PrefixCache
    """Of this variant alone: an adapter changes the keys and values of a prefix."""


class BatchRow:
    """A request of the batch."""

    def __init__(self, request: GenerationRequest, sampler: RowSampler, variant: ModelVariant) -> None:
        self.request, self.variant = request, variant
        self.is_finished = False
        self._sampler = sampler
        self._chosen: Token | None = None
        self._num_tokens = 0

    @property
    def needs_choice(self) -> bool:
        """Whether its next token is not simply the most likely one."""
        return not self.is_finished and not self._sampler.is_plain

    def choose(self, logits_V: Tensor) -> int:
        """Choose its next token, which `pass_on` gets after that. A failure ends this row alone."""
        try:
            self._chosen = self._sampler.choose(logits_V)
        except torch.AcceleratorError:
            raise  # the GPU can't be used any more, by any row
        except Exception as error:  # whatever else fails, the other rows of the batch go on
            logger.exception("a token can't be chosen")
            self.finish("error", f"{type(error).__name__}: {one_line(error, MAX_ERROR_CHARACTERS)}")
            return 0
        return self._chosen.id

    def pass_on(self, token_id: int, stop_token_id: int) -> None:
        """Pass the next token to the client, and finish if it was the last one. Does nothing for a finished row."""
        if self.is_finished:
            return
        if self.request.cancelled.is_set():
            self.finish("cancelled")
        elif token_id == stop_token_id:
            self.finish("stop")
        else:
            self.request.on_token(self._chosen or Token(token_id))
            self._num_tokens += 1
            if self._num_tokens == self.request.sampling.max_new_tokens:
                self.finish("length")

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """Finish the request, unless it is finished."""
        if not self.is_finished:
            self.is_finished = True
            self.request.error = error
            self.request.on_finish(reason)


def end_rows_without_choice(rows: Sequence[BatchRow], largest_B: Tensor) -> None:
    """End the rows whose largest logit is not finite: any token would do, and sampling one fails on a GPU for all."""
    for row, is_finite in zip(rows, largest_B.isfinite().tolist(), strict=True):
        if not is_finite:
            # They may be what is not finite.
            row.variant.prefixes.clear()
            row.finish("error", "the model's output is not finite, so no token can be chosen")


class TokenChooser(LogitsProcessor):
    """Leaves each row only the token that is chosen for it; `generate` then takes the most likely one."""

    def __init__(self, rows: Sequence[BatchRow]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the logits of every other token to minus infinity, where a row needs a choice; (B, V) -> (B, V)."""
        end_rows_without_choice(self._rows, scores.amax(-1))
        for index, row in enumerate(self._rows):
            if row.needs_choice:
                token_id = row.choose(scores[index])
                scores[index] = -torch.inf
                scores[index, token_id] = 0
        return scores


class TokenStreamer(BaseStreamer):
    """Passes each new token to its request, until the request is finished."""

    def __init__(self, rows: Sequence[BatchRow], stop_token_id: int) -> None:
        self._rows, self._stop_token_id = rows, stop_token_id

    def put(self, value: Tensor) -> None:
        """Take the next token of each row; shape (B,)."""
        if value.dim() == 2:
            return  # generate streams the prompts first
        for row, token_id in zip(self._rows, value.tolist(), strict=True):
            row.pass_on(token_id, self._stop_token_id)

    def end(self) -> None:
        """Called after the last token."""
        assert all(row.is_finished for row in self._rows), "generate ended before every request did"


class RowsFinished(StoppingCriteria):
    """Stops the rows whose request is finished: its limit is reached, or it was cancelled."""

    def __init__(self, rows: Sequence[BatchRow]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Whether each row is finished; shape (B,)."""
        return torch.tensor([row.is_finished for row in self._rows], device=input_ids.device)
