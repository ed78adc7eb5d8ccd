"""Grammars of answers that call functions, in the format of the chat template; see `grammars.py`. Pure."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.data.rendering.tool_format import CallSyntax
from instruct_ray.inference.grammars import JSON_OPTIONS, check_grammar, quote

# The model could go on calling until its limit.
MAX_CALLS = 16


@dataclass(frozen=True)
class CallRules:
    """What calls an answer may have."""

    functions: Sequence[dict[str, Any]]
    """The functions that may be called: OpenAI's definitions, without their type."""
    must_call: bool = True
    """Whether it must be calls and nothing else; otherwise it may be text, with calls at its end."""
    one_call: bool = False
    """Whether it may have at most one call."""
    text_schema: dict[str, Any] | None = None
    """The JSON schema of an answer that calls nothing; empty for any object, None for any text."""


def tool_grammar(
    contract: PromptContract, syntax: CallSyntax, special_tokens: Mapping[str, int], rules: CallRules
) -> str:
    """Make the grammar of an answer. Arguments follow the schema of their function.

    Args:
        contract: says what surrounds an answer that is text.
        syntax: what surrounds names and arguments.
        special_tokens: contents and ids of the tokens that calls must be written with.
        rules: what calls the answer may have.

    Raises:
        ValueError: a schema is not valid, or uses what can't be decoded by.
    """
    write = _Writer(special_tokens)
    opening, closing, many = syntax.opening, syntax.closing, ""
    if syntax.separator is not None and not rules.one_call:
        many = f"({write(syntax.separator)} call){{0,{MAX_CALLS - 1}}}"
    # White space outside of the calls is written once.
    before, after = opening[: len(opening) - len(opening.lstrip())], closing[len(closing.rstrip()) :]
    lines = [
        f"calls: {write(before)} call {many} {write(after)}",
        f"call: {write(opening.lstrip())} function {write(closing.rstrip())}",
        f"function: {' | '.join(f'f{number}' for number in range(len(rules.functions)))}",
    ]
    for number, function in enumerate(rules.functions):
        start = write(syntax.before_name + function["name"] + syntax.between)
        schema = _json(function.get("parameters") or {"type": "object"})
        _check_schema(schema)
        lines.append(f"f{number}: {start} {schema} {write(syntax.after_arguments)}")
    if rules.must_call:
        lines.append("start: calls")
    elif rules.text_schema is not None:
        lines += [
            f"start: calls | {quote(contract.answer_prefix)} text {quote(contract.answer_suffix)}",
            f"text: {_json(rules.text_schema or {'type': 'object'})}",
        ]
    else:
        lines += _text_and_calls(syntax, special_tokens, many)
    grammar = LLMatcher.grammar_from_lark("\n".join(lines) + "\n")
    if problem := LLMatcher.validate_grammar(grammar):
        raise ValueError(problem)
    return grammar


def _text_and_calls(syntax: CallSyntax, special_tokens: Mapping[str, int], many: str) -> list[str]:
    """The rules of an answer that is text, with calls at its end."""
    mark = syntax.opening.strip()
    if not mark:
        raise ValueError("the chat template of the model marks no calls, so that they can't be told from text")
    # A special token ends a text; other marks must not be in it.
    if any(mark.startswith(token) for token in special_tokens):
        return ["start: TEXT | TEXT calls", "TEXT: /(?s:.*)/"]
    # Escaped by number: a backslash gives some characters a meaning.
    pattern = "".join(char if char.isalnum() else f"\\x{{{ord(char):x}}}" for char in mark)
    rest = syntax.opening[len(syntax.opening.rstrip()) :]
    return [
        f"start: TEXT | text_and_mark {quote(rest)} function {quote(syntax.closing)} {many}",
        f"TEXT: /(?s:.*)/ & ~/(?s:.*){pattern}(?s:.*)/",
        f"text_and_mark[lazy]: /(?s:.*){pattern}/",
    ]


class _Writer:
    """Writes a fixed text as part of a rule; special tokens in it as such."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._special_tokens = special_tokens
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def __call__(self, text: str) -> str:
        parts = [part for part in self._pattern.split(text) if part]
        written = [
            f"<[{self._special_tokens[part]}]>" if part in self._special_tokens else quote(part) for part in parts
        ]
        return " ".join(written) or '""'


@lru_cache(maxsize=1024)
def _check_schema(schema: str) -> None:
    """Check a schema alone: the whole grammar has tokens of a model, without which it can't be tried."""
    check_grammar(LLMatcher.grammar_from_lark(f"start: {schema}"))


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}"
