r"""How a chat template writes tools and calls, found out by rendering a call; it is no part of the contract.

    <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>
    opening      |before| name |   between   | arguments | closing

A template that writes calls in another form than JSON with name and arguments can be trained. Its calls are read only
if the tokenizer says how, by its `response_template`.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from instruct_ray.data.rendering.chat_template import ChatTemplate
from instruct_ray.data.rendering.contract import Message, PromptContract
from instruct_ray.errors import InputError

PROBE_NAME = "probe_function"
PROBE_ARGUMENTS = {"probe_key": "probe_value"}
PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": PROBE_NAME,
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "string"}}, "required": ["probe_key"]},
    },
}
# Some templates accept ids of this length only.
PROBE_ID = "probe0001"
QUESTION: Message = {"role": "user", "content": "How bad is it?"}


@dataclass(frozen=True)
class CallSyntax:
    """A call as JSON: the texts around its name and its arguments."""

    opening: str
    """What is before the JSON; empty for templates that write nothing there."""
    before_name: str
    """The JSON before the name."""
    between: str
    """The JSON between the name and the arguments."""
    after_arguments: str
    """The JSON after the arguments."""
    closing: str
    """What is after the JSON."""
    separator: str | None
    """What is between two calls; None if the template writes only one."""
    arguments_key: str


@dataclass(frozen=True)
class ToolFormat:
    """What a chat template does with tools and calls."""

    arguments_are_text: bool
    """Whether the template takes arguments as JSON text."""
    call: str
    """A call as the template writes it, without white space around it."""
    prefix: str
    """What every call begins with, without white space around it; may be empty."""
    syntax: CallSyntax | None
    """None for a call that is no JSON with name and arguments."""
    response_template: dict[str, Any] | None
    """How to read calls, for `parse_response` of transformers; None if that is not known."""


def find_tool_format(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, contract: PromptContract
) -> ToolFormat | None:
    """Find out how a template writes tools and calls; None if it leaves out one of them."""
    found = [
        tool_format
        for are_text in (False, True)
        if (tool_format := _find(_Probe(tokenizer, template, contract, are_text), are_text)) is not None
    ]
    # Arguments of the other type would be quoted, or written as Python does.
    return next((tool_format for tool_format in found if tool_format.syntax is not None), next(iter(found), None))


def _find(probe: "_Probe", arguments_are_text: bool) -> ToolFormat | None:
    try:
        call = probe.render_calls(1)
        if call is None or not probe.writes_tools():
            return None
    except InputError:
        return None
    syntax = probe.find_syntax(call)
    known: dict[str, Any] | None = probe.tokenizer.response_template or _make_response_template(syntax)
    prefix = syntax.opening if syntax else call[: min(call.find(PROBE_NAME), call.find("probe_key"))]
    return ToolFormat(arguments_are_text, call.strip(), prefix.strip(), syntax, known)


class _Probe:
    """Renders chats with calls whose name and arguments are known."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, contract: PromptContract, are_text: bool
    ) -> None:
        self.tokenizer, self.template, self.contract = tokenizer, template, contract
        arguments: Any = json.dumps(PROBE_ARGUMENTS) if are_text else PROBE_ARGUMENTS
        self._call = {"id": PROBE_ID, "type": "function", "function": {"name": PROBE_NAME, "arguments": arguments}}

    def render_calls(self, count: int) -> str | None:
        """Render an answer that is some calls, as the model has to write it; None if it lacks one of them.

        Raises:
            InputError: the template rejects it.
        """
        question = self.contract.add_system_prompt([QUESTION])
        answer: Message = {"role": "assistant", "content": "", "tool_calls": [self._call] * count}
        prompt = self.template.render(question, add_generation_prompt=True, tools=[PROBE_TOOL])
        chat = self.template.render([*question, answer], add_generation_prompt=False, tools=[PROBE_TOOL])
        stop = self.tokenizer.added_tokens_decoder[self.contract.stop_token_id].content
        if not chat.startswith(prompt) or stop not in chat[len(prompt) :]:
            return None
        text = chat[len(prompt) : chat.rindex(stop)]
        are_written = all(text.count(part) == count for part in (PROBE_NAME, "probe_key", "probe_value"))
        return text if are_written else None

    def writes_tools(self) -> bool:
        """Whether a prompt has the definitions of its tools."""
        question = self.contract.add_system_prompt([QUESTION])
        return PROBE_NAME in self.template.render(question, add_generation_prompt=True, tools=[PROBE_TOOL])

    def find_syntax(self, call: str) -> CallSyntax | None:
        """Find the JSON with name and arguments in a rendered call."""
        start = call.find("{")
        try:
            value, size = json.JSONDecoder().raw_decode(call[start:]) if start >= 0 else (None, 0)
        except ValueError:
            return None
        # An id in the call would have to be made up by the model, and could not be the one of the response.
        if not isinstance(value, dict) or value.get("name") != PROBE_NAME or PROBE_ID in call:
            return None
        key = next((key for key, item in value.items() if item == PROBE_ARGUMENTS), None)
        text = call[start : start + size]
        before, _, rest = text.partition(PROBE_NAME)
        arguments_at = rest.find("{")
        if key is None or set(value) != {"name", key} or arguments_at < 0:
            return None
        _, arguments_size = json.JSONDecoder().raw_decode(rest[arguments_at:])
        opening, closing = call[:start], call[start + size :]
        separator = self._find_separator(opening.lstrip(), text, closing.rstrip())
        after = rest[arguments_at + arguments_size :]
        return CallSyntax(opening, before, rest[:arguments_at], after, closing, separator, key)

    def _find_separator(self, opening: str, text: str, closing: str) -> str | None:
        try:
            both = self.render_calls(2)
        except InputError:
            return None
        call = opening + text + closing
        if both is None or not opening or both.count(call) != 2:
            return None
        separator = both.strip().removeprefix(call.strip()).removesuffix(call.strip())
        return separator if separator.isspace() or not separator else None


def _make_response_template(syntax: CallSyntax | None) -> dict[str, Any] | None:
    """Describe the syntax to `parse_response` of transformers."""
    if syntax is None:
        return None
    opening, closing = syntax.opening.strip(), syntax.closing.strip()
    calls: dict[str, Any] = {
        # A call without an opening is the whole answer.
        "open_pattern": rf"\s*{re.escape(opening)}" if opening else r"\A\s*(?=\{)",
        "repeats": True,
        "content": "json",
        "transform": {
            "type": "function",
            "function": {"name": "{content.name}", "arguments": f"{{content.{syntax.arguments_key}}}"},
        },
    }
    if closing:
        calls["close"] = closing
    content = {"content": "text", "repeats": True, "join": "", "content_args": {"strip": False}}
    # The anchor is for prompts that begin an answer, which no contract has.
    return {"start_anchor": opening or "{", "fields": {"tool_calls": calls, "content": content}}
