"""Grammars of completions: one of some texts, or JSON by a schema. Decoding by llguidance.

A grammar is a string in llguidance's format, which says what the whole completion must be, the contract's prefix and
suffix of answers included. The engine allows only tokens that can be continued to such a text, then the stop token.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from instruct_ray.data.rendering.contract import PromptContract

# Bounded, and only after a colon or a comma: a model could go on with white space for ever. (A bounded
# `whitespace_pattern` may be repeated.)
JSON_OPTIONS = {"whitespace_flexible": False, "key_separator": r":[ ]{0,1}", "item_separator": r",[ \n\t]{0,16}"}

# Some bytes into the first key of an object.
NUM_CHECKED_BYTES = 32
# Not an error for us: llguidance's word for the end of a text.
NOTHING_LEFT = "NoExtension"


def choice_grammar(contract: PromptContract, texts: Sequence[str]) -> str:
    """The grammar of an answer that is one of some texts."""
    choices = " | ".join(quote(contract.strip_answer(text)) for text in dict.fromkeys(texts))
    return LLMatcher.grammar_from_lark(_wrap(contract, f"({choices})"))


def json_grammar(contract: PromptContract, schema: dict[str, Any]) -> str:
    """The grammar of an answer that is JSON of a schema; the empty schema allows any object.

    Raises:
        ValueError: the schema is not valid, or uses what can't be decoded by.
    """
    content = {**(schema or {"type": "object"}), "x-guidance": JSON_OPTIONS}
    grammar = LLMatcher.grammar_from_lark(_wrap(contract, f"%json {json.dumps(content)}"))
    check_grammar(grammar)
    return grammar


def check_grammar(grammar: str) -> None:
    """Check that a grammar can be decoded by, as far as its first bytes show.

    Raises:
        ValueError: it is not valid, no text follows it, or it is too large for llguidance.
    """
    if problem := LLMatcher.validate_grammar(grammar):
        raise ValueError(problem)
    # Limits of llguidance show only while decoding. Byte by byte, which needs no tokenizer of a model.
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    for number in range(NUM_CHECKED_BYTES):
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = [int(token_id) for token_id in np.flatnonzero(bits) if token_id != tokenizer.eos_token]
        if not allowed and number == 0:
            raise ValueError("no text follows the grammar")
        if not allowed or not matcher.consume_token(allowed[0]):
            break
    if matcher.is_error() and NOTHING_LEFT not in (problem := matcher.get_error()):
        raise ValueError(problem)


class Grammars:
    """Makes the state of a completion by its grammar, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_token_id: int, vocab_size: int) -> None:
        """Take the tokenizer, which is converted when the first grammar needs it.

        Args:
            tokenizer: of the model.
            stop_token_id: of the contract; it ends a completion.
            vocab_size: number of logits, which may exceed the number of tokens.
        """
        self._hf_tokenizer, self._stop_token_id, self._vocab_size = tokenizer, stop_token_id, vocab_size

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return from_tokenizer(self._hf_tokenizer, n_vocab=self._vocab_size, eos_token=self._stop_token_id)

    def start(self, grammar: str) -> "GrammarState":
        """The state of a completion that has no token yet.

        Raises:
            ValueError: the grammar can't be used with this tokenizer.
        """
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"the grammar can't be used: {matcher.get_error()}")
        return GrammarState(matcher, self._vocab_size)


class GrammarState:
    """Which tokens may come next in a completion."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> Tensor:
        """Which tokens may come next: booleans, shape (V,)."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(bool))

    def advance(self, token_id: int) -> None:
        """Add a token to the completion.

        Raises:
            ValueError: the token was not allowed.
        """
        if not self._matcher.consume_token(token_id):
            raise ValueError(f"token {token_id} is not allowed by the grammar: {self._matcher.get_error()}")


def _wrap(contract: PromptContract, answer: str) -> str:
    """A Lark grammar of an answer as the contract renders it."""
    parts = [contract.answer_prefix and quote(contract.answer_prefix), "answer"]
    parts.append(contract.answer_suffix and quote(contract.answer_suffix))
    return f"start: {' '.join(part for part in parts if part)}\nanswer: {answer}\n"


def quote(text: str) -> str:
    """Write a text as a string of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)
