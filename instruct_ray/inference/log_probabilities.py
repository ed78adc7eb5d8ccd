"""Greedy answers of a loaded model with the log-probability of each token, and what a model thinks of given answers.

Log-probabilities of an answer come from the passes that generate it, those of a given answer from one pass over prompt
and answer. Rows are computed together, with their shared prefix computed once, where the model's architecture answers
each as it would alone (`batch_rules`).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import LogitsProcessor, LogitsProcessorList

from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.inference.batch_rules import BatchRules
from instruct_ray.inference.prefix_cache import PrefixCache
from instruct_ray.inference.prompt_batch import PromptBatch

# Shape suffixes: B = rows, T = tokens, V = tokens of the vocabulary


@dataclass(frozen=True)
class ScoredTokens:
    """Tokens with their log-probabilities."""

    token_ids: list[int]
    log_probs: list[float]
    """Log-probability of each token, given the prompt and the tokens before it."""
    gaps: list[float]
    """How much more likely the most likely token is than the second: near 0, rounding decides which one is first."""

    def first(self, number: int) -> "ScoredTokens":
        """Its first tokens."""
        return ScoredTokens(self.token_ids[:number], self.log_probs[:number], self.gaps[:number])


@dataclass(frozen=True)
class ScoredAnswer:
    """What a model thinks of a given answer."""

    log_probs: list[float]
    """Log-probability of each of its tokens."""
    favourites: ScoredTokens
    """At each position the token that the model would give after the answer's tokens before it."""


def answer_greedily(
    model: Any, prompts: Sequence[list[int]], contract: PromptContract, max_new_tokens: int
) -> list[ScoredTokens]:
    """Generate an answer to each prompt, with the stop token where one stopped."""
    # Its file may hold a repetition penalty and the like.
    model.generation_config = GenerationConfig()
    groups = [list(prompts)] if _may_share_batch(model) and prompts else [[ids] for ids in prompts]
    return [answer for group in groups for answer in _answer_batch(model, group, contract, max_new_tokens)]


def score_answers(
    model: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]], contract: PromptContract
) -> list[ScoredAnswer]:
    """Compute what the model thinks of an answer to each prompt, in one forward pass over both."""
    rows = list(zip(prompts, answers, strict=True))
    groups = [rows] if _may_share_batch(model) and rows else [[row] for row in rows]
    return [scores for group in groups for scores in _score_batch(model, group, contract)]


@torch.inference_mode()
def _score_batch(
    model: Any, rows: Sequence[tuple[list[int], list[int]]], contract: PromptContract
) -> list[ScoredAnswer]:
    # The last token of an answer is predicted, and is no input.
    batch = PromptBatch([[*prompt, *answer][:-1] for prompt, answer in rows], contract.pad_token_id)
    num_logits, prefixes = max(len(answer) for _, answer in rows), PrefixCache(0)
    num_cached = batch.num_cached(prefixes)
    if num_cached >= min(len(prompt) for prompt, _ in rows):
        # Equal prompts share a part of their answers too, which would be missing in the logits.
        return [scores for row in rows for scores in _score_batch(model, [row], contract)]
    options: dict[str, Any] = {}
    if len(rows) > 1:
        mask_BT, prefix = batch.attention_mask_BT.to(model.device), batch.compute_prefix_cache(model, prefixes)
        options = {
            "attention_mask": mask_BT,
            "position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0)[:, num_cached:],
            "past_key_values": None if prefix is None else prefix.states,
        }
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = num_logits
    input_ids_BT = batch.input_ids_BT.to(model.device)[:, num_cached:]
    logits_BTV = model(input_ids_BT, use_cache=len(rows) > 1, **options).logits[:, -num_logits:]
    # The token at a position is predicted by the one before it, and all rows end together.
    return [
        _score(logits_TV[len(logits_TV) - len(answer) :], answer)
        for logits_TV, (_, answer) in zip(logits_BTV, rows, strict=True)
    ]


def _score(logits_TV: Tensor, token_ids: list[int]) -> ScoredAnswer:
    targets_T = torch.tensor(token_ids, device=logits_TV.device)
    log_probs_T = logits_TV.float().log_softmax(dim=-1).gather(1, targets_T[:, None])[:, 0]
    return ScoredAnswer(log_probs_T.tolist(), _favourites(logits_TV))


def _favourites(logits_TV: Tensor) -> ScoredTokens:
    """The most likely token of each row, which is the one that greedy decoding takes."""
    top = logits_TV.float().log_softmax(dim=-1).topk(2, dim=-1)
    first, second = top.values.unbind(dim=-1)
    return ScoredTokens(top.indices[:, 0].tolist(), first.tolist(), (first - second).tolist())


class _Recorder(LogitsProcessor):
    """Keeps the most likely token of each row at each step, and changes nothing."""

    def __init__(self) -> None:
        self.steps: list[ScoredTokens] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(_favourites(scores))
        return scores

    def row(self, index: int) -> ScoredTokens:
        """The tokens of a row over all steps."""
        return ScoredTokens(
            [step.token_ids[index] for step in self.steps],
            [step.log_probs[index] for step in self.steps],
            [step.gaps[index] for step in self.steps],
        )


def _may_share_batch(model: Any) -> bool:
    """Whether rows of different lengths can be computed together, each as it would be alone."""
    rules = BatchRules.from_model(model)
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    return rules.shares_prefix and rules.longest_in_batch is None and takes_positions


@torch.inference_mode()
def _answer_batch(
    model: Any, prompts: Sequence[list[int]], contract: PromptContract, max_new_tokens: int
) -> list[ScoredTokens]:
    batch, recorder = PromptBatch(prompts, contract.pad_token_id), _Recorder()
    prefix = batch.compute_prefix_cache(model, PrefixCache(0))
    output = model.generate(
        batch.input_ids_BT.to(model.device),
        attention_mask=batch.attention_mask_BT.to(model.device),
        past_key_values=None if prefix is None else prefix.states,
        logits_processor=LogitsProcessorList([recorder]),
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=contract.stop_token_id,
            pad_token_id=contract.pad_token_id,
            use_cache=True,
        ),
    )
    answers: list[list[int]] = output[:, batch.max_length :].tolist()
    return [recorder.row(index).first(_length(answer, contract.stop_token_id)) for index, answer in enumerate(answers)]


def _length(token_ids: list[int], stop_token_id: int) -> int:
    """The number of tokens up to the first stop token; padding follows it."""
    return token_ids.index(stop_token_id) + 1 if stop_token_id in token_ids else len(token_ids)
