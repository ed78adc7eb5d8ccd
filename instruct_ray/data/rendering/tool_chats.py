"""Renders chats with tools as token ids: prompts with function definitions, results of tools, and calls as answers.

As in chats without tools, text from users never becomes a special token; here this includes definitions, arguments and
results of tools. Every prompt and answer is rendered on its own, since calls differ in more than texts.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from instruct_ray.data.rendering.chat_template import ChatTemplate
from instruct_ray.data.rendering.contract import Message, PromptContract
from instruct_ray.data.rendering.encoding import CLOSE, OPEN, Encoder
from instruct_ray.data.rendering.tool_format import ToolFormat, find_tool_format
from instruct_ray.data.rendering.turns import TokenIds, Turn, explain_special
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError

Tools = Sequence[dict[str, Any]]
# Keys of messages, calls and function definitions that chat templates look up.
READ_KEYS = frozenset(
    {
        "role", "content", "tool_calls", "tool_call_id", "id", "type", "function", "name", "arguments", "description",
        "parameters", "properties", "required", "items", "enum", "strict",
    }
)  # fmt: skip
NO_TOOLS_ERROR = (
    "has tools, but the chat template of the base model writes no tools or no calls; use a base model whose template "
    "does, or put such a template into its chat_template.jinja"
)


class ToolChats:
    """Renders chats with tools by a contract."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, encoder: Encoder, contract: PromptContract
    ) -> None:
        self._tokenizer, self._template, self._encoder, self._contract = tokenizer, template, encoder, contract
        self.format: ToolFormat | None = find_tool_format(tokenizer, template, contract)
        """What the template does with tools; None if it does not support them."""
        self._stop = tokenizer.added_tokens_decoder[contract.stop_token_id].content
        special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        call = "" if self.format is None else self.format.call
        self.mark_ids = frozenset(number for content, number in special.items() if content in call)
        """Special tokens that calls are written with; decoding an answer keeps them."""

    def prompt(self, messages: list[Message], tools: Tools | None) -> TokenIds | RowError:
        """Encode a chat as the tokens that its answer follows."""
        try:
            return self._encode_prompt(messages, tools)
        except InputError as error:
            return RowError("template", str(error))
        except RowError as error:
            return error

    def turn(self, messages: list[Message], tools: Tools | None) -> Turn | RowError:
        """Encode a chat that ends with an answer as prompt and completion, which includes the stop token."""
        try:
            prompt_ids = self._encode_prompt(messages[:-1], tools)
            text = self._render_answer(messages, tools, self._encoder.escape_special)
            ids = self._encode_after(prompt_ids, text)
            harmless = self._render_answer(messages, tools, self._encoder.replace_special_characters)
            self._check_special(ids, self._encode_after(prompt_ids, harmless), messages, tools)
        except InputError as error:
            return RowError("template", str(error))
        except RowError as error:
            return error
        return prompt_ids, [*ids, self._contract.stop_token_id]

    def row_turns(self, triple: Triple) -> list[Turn | RowError]:
        """Encode the answers of a row, each with its prompt."""
        assert triple.tool_chat is not None
        messages, first = chat_messages(triple), 0 if triple.system is None else 1
        return [self.turn(messages[: first + target + 1], triple.tools) for target in triple.tool_chat.targets]

    def set_output(self, triple: Triple) -> Triple:
        """Return a row with tools whose output is its last answer as the template writes it.

        Raises:
            RowError: the template rejects the chat.
        """
        assert triple.tool_chat is not None
        try:
            text = self._render_answer(chat_messages(triple), triple.tools, self._encoder.escape_special)
        except InputError as error:
            raise RowError("template", str(error)) from None
        return replace(triple, output=text.replace(OPEN, "").replace(CLOSE, "").strip())

    def _encode_prompt(self, messages: list[Message], tools: Tools | None) -> TokenIds:
        encoder = self._encoder
        ids = encoder.encode_escaped(self._render(messages, tools, encoder.escape_special, is_prompt=True))
        harmless = self._render(messages, tools, encoder.replace_special_characters, is_prompt=True)
        self._check_special(ids, encoder.encode_escaped(harmless), messages, tools)
        return ids

    def _encode_after(self, prompt_ids: TokenIds, text: str) -> TokenIds:
        """Encode a text that follows a prompt."""
        encoder = self._encoder
        encode_after = (
            encoder.encode_after_special if encoder.special_ids(prompt_ids[-1:]) else encoder.encode_after_text
        )
        return encoder.encode_escaped(text, lambda texts: encode_after(texts, encoder.encode_with_special))

    def _check_special(
        self, ids: TokenIds, harmless_ids: TokenIds, messages: Sequence[Message], tools: Tools | None
    ) -> None:
        """Check that the template wrote all special tokens: the same as for texts that can't contain any."""
        has_unknown = self._tokenizer.unk_token_id in ids
        if has_unknown or self._encoder.special_ids(ids) != self._encoder.special_ids(harmless_ids):
            raise explain_special(self._encoder, _find_texts([list(messages), tools]))

    def _render_answer(self, messages: list[Message], tools: Tools | None, change: Callable[[str], str]) -> str:
        """Render the last message as the model has to write it, up to the stop token."""
        prompt = self._render(messages[:-1], tools, change, is_prompt=True)
        chat = self._render(messages, tools, change, is_prompt=False)
        end = chat.rfind(self._stop)
        is_of_user = chat[end - 1 : end] == OPEN and chat[end + len(self._stop) :].startswith(CLOSE)
        if not chat.startswith(prompt) or end < len(prompt) or is_of_user:
            raise RowError("template", "has a chat whose prompt and answer the chat template does not keep apart")
        return chat[len(prompt) : end]

    def _render(
        self, messages: list[Message], tools: Tools | None, change: Callable[[str], str], *, is_prompt: bool
    ) -> str:
        """Render a chat whose texts are changed by a function."""
        if self.format is None:
            raise RowError("tools", NO_TOOLS_ERROR)
        changed = [_change_message(message, change, self.format.arguments_are_text) for message in messages]
        return self._template.render(
            self._contract.add_system_prompt(changed),
            add_generation_prompt=is_prompt,
            tools=None if tools is None else _change(list(tools), change),
        )


def chat_messages(triple: Triple) -> list[Message]:
    """The messages of a row with tools, through its last answer."""
    assert triple.tool_chat is not None
    system: list[Message] = [] if triple.system is None else [{"role": "system", "content": triple.system}]
    return [*system, *triple.tool_chat.messages]


def has_tool_messages(messages: Sequence[Message]) -> bool:
    """Whether a chat has calls or results of tools."""
    return any(message["role"] == "tool" or "tool_calls" in message for message in messages)


def _change_message(message: Message, change: Callable[[str], str], arguments_are_text: bool) -> Message:
    changed: Message = _change(message, change)
    changed["role"] = message["role"]
    for call in changed.get("tool_calls", []) if arguments_are_text else []:
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return changed


def _change(value: Any, change: Callable[[str], str]) -> Any:
    """Change all texts in a JSON value, also keys of objects, apart from those that templates read."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key if key in READ_KEYS else change(key): _change(item, change) for key, item in value.items()}
    return [_change(item, change) for item in value] if isinstance(value, list) else value


def _find_texts(value: Any) -> list[str]:
    """All texts in a JSON value."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *_find_texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in _find_texts(item)]
    return [value] if isinstance(value, str) else []
