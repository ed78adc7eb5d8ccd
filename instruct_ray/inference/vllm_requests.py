"""pure: requests of this package as vLLM's, and vLLM's completions as tokens of this package."""

from collections.abc import Iterator, Sequence
from typing import Any

from vllm import SamplingParams as VllmSamplingParams
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind

from instruct_ray.inference.engine import SamplingParams, Token, TokenLogProbs
from instruct_ray.inference.vllm_grammars import GRAMMAR

# vLLM refuses 0; either keeps only the most likely token.
MIN_TOP_P = 1e-9


def check_prompt(prompt_ids: Sequence[int], vocab_size: int) -> None:
    """Check the tokens of a prompt, which vLLM does not do without a tokenizer.

    Raises:
        ValueError: the model has no such token.
    """
    for token_id in prompt_ids:
        if not 0 <= token_id < vocab_size:
            raise ValueError(f"the prompt has token {token_id}; the model has {vocab_size} tokens")


def to_vllm(sampling: SamplingParams, stop_token_id: int) -> VllmSamplingParams:
    """How vLLM chooses the tokens of a completion. Temperatures below 0.01 that are not greedy become 0.01 there."""
    return VllmSamplingParams(
        max_tokens=sampling.max_new_tokens,
        temperature=0.0 if sampling.is_greedy else sampling.temperature,
        top_p=max(sampling.top_p, MIN_TOP_P),
        # As in the transformers engine. vLLM takes -1 for none.
        seed=None if sampling.seed is None else sampling.seed & (2**63 - 1),
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        logprobs=sampling.num_top_log_probs,
        # Only the contract's token ends an answer, not those of the model's generation_config.json.
        stop_token_ids=[stop_token_id],
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=None if sampling.grammar is None else {GRAMMAR: sampling.grammar},
    )


def read_tokens(output: CompletionOutput, num_top_log_probs: int | None) -> Iterator[Token]:
    """The new tokens of a completion, the stop token included."""
    for index, token_id in enumerate(output.token_ids):
        if num_top_log_probs is None or output.logprobs is None:
            yield Token(token_id)
        else:
            yield Token(token_id, _read_log_probs(output.logprobs[index], token_id, num_top_log_probs))


def _read_log_probs(entries: dict[int, Any], token_id: int, num_top: int) -> TokenLogProbs:
    """Those of one position, which has the most likely tokens and the chosen one, with their ranks from 1."""
    best = sorted(entries.items(), key=lambda entry: entry[1].rank)
    top = tuple((other_id, entry.logprob) for other_id, entry in best if entry.rank <= num_top)
    return TokenLogProbs(entries[token_id].logprob, top)
