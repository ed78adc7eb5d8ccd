"""A batch that requests join while others of it are being answered, and leave as soon as they are.

    cache   = padding | tokens of a row             all rows end together, (B, H, T, D) in each layer
    step    = one token of every row                computed together, each with its adapter
    join    = prompts computed as a batch of their own, then both padded to the same length and put together

Columns that are padding in every row are cut off when a row leaves.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from instruct_ray.inference.adapters import AdapterSwitch
from instruct_ray.inference.prefix_cache import PrefixCache
from instruct_ray.inference.prompt_batch import PromptBatch
from instruct_ray.inference.running_batch import BatchRow, end_rows_without_choice

# Shape suffixes: B = rows, T = tokens of the longest row, H = heads, D = head dimension, V = tokens of the vocabulary


@dataclass
class _RunningRows:
    """Rows with the keys and values of their tokens, except the last token, which is chosen and not computed yet."""

    rows: list[BatchRow]
    cache: DynamicCache
    mask_BT: Tensor
    """1 for tokens of a row, 0 for padding."""
    tokens_B: Tensor


class ContinuousBatch:
    """The requests that are being answered."""

    def __init__(self, model: Any, stop_token_id: int, pad_token_id: int, switch: AdapterSwitch) -> None:
        self._model, self._stop_token_id, self._pad_token_id = model, stop_token_id, pad_token_id
        self._switch = switch
        # Only the last logits of a prompt are used.
        takes_limit = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if takes_limit else {}
        self._running: _RunningRows | None = None

    @property
    def rows(self) -> list[BatchRow]:
        """The rows that are not finished."""
        return [] if self._running is None else self._running.rows

    @torch.inference_mode()
    def add(self, rows: Sequence[BatchRow]) -> None:
        """Compute the prompts of some rows and their first tokens, and let those that go on join.

        After an exception the rows that were running before are still in `rows`, or can't go on.
        """
        for variant in dict.fromkeys(row.variant for row in rows):
            with self._switch.use([variant.adapter], self._model.device):
                self._add([row for row in rows if row.variant is variant], variant.prefixes)

    def _add(self, rows: list[BatchRow], prefixes: PrefixCache) -> None:
        """Let rows of one variant of the model join, so that what their prompts share is the same for all of them."""
        prompts = PromptBatch([list(row.request.prompt_ids) for row in rows], self._pad_token_id)
        device = self._model.device
        input_ids_BT, mask_BT = prompts.input_ids_BT.to(device), prompts.attention_mask_BT.to(device)
        prefix = prompts.compute_prefix_cache(self._model, prefixes)
        for row, num_reused in zip(rows, prompts.num_reused(prefix), strict=True):
            row.request.num_cached_tokens = num_reused
        cache = DynamicCache(config=self._model.config) if prefix is None else prefix.states
        new = _RunningRows(rows, cache, mask_BT, input_ids_BT[:, -1])
        logits_BV = self._forward(new, input_ids_BT[:, cache.get_seq_length() :])
        joining = self._advance(new, logits_BV)
        running, self._running = self._running, None
        self._running = _join(running, joining)

    @torch.inference_mode()
    def step(self) -> None:
        """Compute one token of every row; rows that are finished leave. After an exception none can go on."""
        running, self._running = self._running, None
        assert running is not None
        running.mask_BT = pad(running.mask_BT, (0, 1), value=1)
        with self._switch.use([row.variant.adapter for row in running.rows], self._model.device):
            logits_BV = self._forward(running, running.tokens_B[:, None])
        self._running = self._advance(running, logits_BV)

    def _forward(self, running: _RunningRows, input_ids_BT: Tensor) -> Tensor:
        """Compute the inputs, whose keys and values are added to the cache; returns the logits of the last ones."""
        positions_BT = (running.mask_BT.cumsum(1) - 1).clamp(min=0)[:, -input_ids_BT.shape[1] :]
        output = self._model(
            input_ids_BT,
            attention_mask=running.mask_BT,
            position_ids=positions_BT,
            past_key_values=running.cache,
            use_cache=True,
            **self._options,
        )
        logits_BV: Tensor = output.logits[:, -1].float()
        return logits_BV

    def _advance(self, running: _RunningRows, logits_BV: Tensor) -> _RunningRows | None:
        """Choose the next token of each row and pass it on; returns the rows that go on, None if there are none."""
        largest_B, ids_B = logits_BV.max(-1)
        token_ids = ids_B.tolist()
        end_rows_without_choice(running.rows, largest_B)
        for index, row in enumerate(running.rows):
            if row.needs_choice:
                token_ids[index] = row.choose(logits_BV[index])
            row.pass_on(token_ids[index], self._stop_token_id)
        kept = [index for index, row in enumerate(running.rows) if not row.is_finished]
        if not kept:
            return None
        running.tokens_B = torch.tensor(token_ids, device=logits_BV.device)
        return running if len(kept) == len(running.rows) else _select(running, kept)


def _select(running: _RunningRows, kept: list[int]) -> _RunningRows:
    """Keep some of the rows, and cut off columns that are padding in all of them."""
    indices = torch.tensor(kept, device=running.mask_BT.device)
    mask_BT = running.mask_BT[indices]
    num_padding = int(mask_BT.any(0).int().argmax())
    for layer in _used_layers(running.cache):
        layer.keys = layer.keys[indices, :, num_padding:]
        layer.values = layer.values[indices, :, num_padding:]
    rows = [running.rows[index] for index in kept]
    return _RunningRows(rows, running.cache, mask_BT[:, num_padding:], running.tokens_B[indices])


def _join(first: _RunningRows | None, second: _RunningRows | None) -> _RunningRows | None:
    """Put the rows of two batches together."""
    if first is None or second is None:
        return first or second
    length = max(first.mask_BT.shape[1], second.mask_BT.shape[1])
    for layer, other in zip(_used_layers(first.cache), _used_layers(second.cache), strict=True):
        layer.keys = torch.cat([_pad_left(layer.keys, length), _pad_left(other.keys, length)])
        layer.values = torch.cat([_pad_left(layer.values, length), _pad_left(other.values, length)])
    mask_BT = torch.cat([pad(one.mask_BT, (length - one.mask_BT.shape[1], 0)) for one in (first, second)])
    tokens_B = torch.cat([first.tokens_B, second.tokens_B])
    return _RunningRows(first.rows + second.rows, first.cache, mask_BT, tokens_B)


def _used_layers(cache: DynamicCache) -> list[Any]:
    """Those that have keys and values; some layers use those of another one."""
    return [layer for layer in cache.layers if layer.is_initialized]


def _pad_left(states_BHTD: Tensor, length: int) -> Tensor:
    return pad(states_BHTD, (0, 0, length - states_BHTD.shape[2], 0))
