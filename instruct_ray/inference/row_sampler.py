"""Chooses the tokens of one completion from the model's logits, by its own settings and with its own random numbers.

Each request of a batch has a sampler, so requests with different settings share a batch, and a seed gives the same
completion whatever the others are.
"""

from collections import Counter

import torch
from torch import Tensor

from instruct_ray.inference.engine import SamplingParams, Token, TokenLogProbs
from instruct_ray.inference.grammars import GrammarState

# Shape suffixes: V = tokens of the vocabulary


class RowSampler:
    """Chooses the tokens of one completion."""

    def __init__(self, sampling: SamplingParams, grammar: GrammarState | None, device: torch.device) -> None:
        self._sampling, self._grammar = sampling, grammar
        self._counts: Counter[int] = Counter()
        self._generator: torch.Generator | None = None
        if not sampling.is_greedy:
            self._generator = torch.Generator(device)
            if sampling.seed is None:
                self._generator.seed()
            else:
                # Any 64-bit number; negative ones are valid in OpenAI's API.
                self._generator.manual_seed(sampling.seed & (2**63 - 1))

    @property
    def is_plain(self) -> bool:
        """Whether the most likely token is taken and nothing else is asked for."""
        sampling = self._sampling
        return (
            sampling.is_greedy
            and sampling.num_top_log_probs is None
            and not sampling.logit_bias
            and not sampling.presence_penalty
            and not sampling.frequency_penalty
            and self._grammar is None
        )

    def choose(self, logits_V: Tensor) -> Token:
        """Choose the next token.

        Args:
            logits_V: of the model, in fp32; shape (V,). Not changed.
        """
        token_id = self._choose_id(self._adjust(logits_V))
        self._counts[token_id] += 1
        if self._grammar is not None:
            self._grammar.advance(token_id)
        return Token(token_id, self._log_probs(logits_V, token_id))

    def _adjust(self, logits_V: Tensor) -> Tensor:
        """The logits with bias, penalties and grammar."""
        sampling, adjusted_V = self._sampling, logits_V.clone()
        for token_id, bias in sampling.logit_bias:
            adjusted_V[token_id] += bias
        if self._counts and (sampling.presence_penalty or sampling.frequency_penalty):
            ids = torch.tensor(list(self._counts), device=logits_V.device)
            counts = torch.tensor(list(self._counts.values()), device=logits_V.device, dtype=logits_V.dtype)
            adjusted_V[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        if self._grammar is not None:
            adjusted_V.masked_fill_(~self._grammar.allowed().to(logits_V.device), -torch.inf)
        return adjusted_V

    def _choose_id(self, logits_V: Tensor) -> int:
        if self._generator is None:
            return int(logits_V.argmax())
        probs_V = torch.softmax(logits_V / self._sampling.temperature, dim=-1)
        if self._sampling.top_p < 1:
            probs_V = _keep_top_p(probs_V, self._sampling.top_p)
        return int(torch.multinomial(probs_V, 1, generator=self._generator))

    def _log_probs(self, logits_V: Tensor, token_id: int) -> TokenLogProbs | None:
        count = self._sampling.num_top_log_probs
        if count is None:
            return None
        log_probs_V = torch.log_softmax(logits_V, dim=-1)
        values, ids = log_probs_V.topk(count)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return TokenLogProbs(float(log_probs_V[token_id]), top)


def _keep_top_p(probs_V: Tensor, top_p: float) -> Tensor:
    """Keep the fewest tokens whose probabilities sum to `top_p` or more; the others get 0."""
    sorted_V, order_V = probs_V.sort(descending=True)
    # Those before a token sum to less than top_p.
    kept_V = sorted_V.cumsum(-1) - sorted_V < top_p
    # Also if top_p is 0 in fp32.
    kept_V[..., 0] = True
    return torch.zeros_like(probs_V).scatter(-1, order_V, sorted_V * kept_V)
