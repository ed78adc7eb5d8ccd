"""Reads the calls of tools in an answer, as `parse_response` of transformers does by the format of the template."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from instruct_ray.data.rendering.tool_format import ToolFormat


@dataclass(frozen=True)
class FunctionCall:
    """A call as in OpenAI's API."""

    name: str
    arguments: str
    """A JSON object."""


@dataclass(frozen=True)
class ParsedAnswer:
    """The text of an answer, without its calls, and the calls."""

    text: str
    calls: tuple[FunctionCall, ...] = ()


def parse_answer(
    tokenizer: PreTrainedTokenizerBase, tool_format: ToolFormat, text: str, tools: Sequence[dict[str, Any]]
) -> ParsedAnswer:
    """Find the calls in an answer.

    If it has no call, or one that is invalid or of a function that is not among the tools, all of it is text.

    Args:
        tokenizer: the tokenizer.
        tool_format: the format, which says how calls are read.
        text: the answer, with the marks of its calls.
        tools: the function definitions.
    """
    names = {tool["function"]["name"] for tool in tools}
    # JSON has its types; other formats write every argument as text, which the definitions give a type.
    typed_by = None if tool_format.syntax else [*tools]
    try:
        message = tokenizer.parse_response(text, schema=tool_format.response_template, prefix="", tools=typed_by)
        calls = tuple(_read_call(call, names) for call in message.get("tool_calls", []))
    # What is nested too deeply for the JSON parser is no call either.
    except (ValueError, KeyError, TypeError, RecursionError):
        return ParsedAnswer(text)
    return ParsedAnswer((message.get("content") or "").strip(), calls) if calls else ParsedAnswer(text)


def _read_call(call: Any, names: Collection[str]) -> FunctionCall:
    """Read a parsed call.

    Raises:
        ValueError: it is of no known function, or its arguments are no JSON object.
    """
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if name not in names or not isinstance(arguments, dict):
        raise ValueError("not a call of a known function with an object")
    return FunctionCall(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))
