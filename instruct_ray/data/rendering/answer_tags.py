"""Tags such as `<think>` that the chat template writes, moves or removes in answers, so that answers can't have them.

In an answer such as `<think>…</think>High` the tags would be tokenized as plain text, after the empty thinking block
that the template writes, and not as the special tokens that the model knows.
"""

import re
from dataclasses import replace
from itertools import chain

from transformers import PreTrainedTokenizerBase

from instruct_ray.data.rendering.chat_template import ChatTemplate
from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.tool_chat import ToolChat
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError

# <think> with </think>, [THINK] with [/THINK].
OPENING_TAG = re.compile(r"<(\w+)>|\[(\w+)\]")


class AnswerTags:
    """The tags of a chat template around and inside answers."""

    def __init__(self, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, chat: list[Message]) -> None:
        """Find the tags.

        Args:
            template: the chat template.
            tokenizer: its tokenizer.
            chat: a chat up to a question, as the template accepts it.
        """
        self._template, self._chat = template, chat
        texts = template.texts()
        openings = dict.fromkeys(match[0] for text in texts for match in OPENING_TAG.finditer(text))
        pairs = [(opening, closing_tag(opening)) for opening in openings]
        ordinary = {token.content for token in tokenizer.added_tokens_decoder.values() if not token.special}
        generation_prompt = self._find_generation_prompt()
        owned = [
            (opening, closing)
            for opening, closing in pairs
            if any(closing in text for text in texts)
            and (
                not ordinary.isdisjoint((opening, closing))
                or opening in generation_prompt
                or self._changes(f"{opening}a{closing}b")
            )
        ]
        self._tags = tuple(chain.from_iterable(owned))
        # What such a block looks like that the template writes before every answer.
        written = [rf"{re.escape(opening)}\s*{re.escape(closing)}\s*" for opening, closing in owned]
        empty_blocks = [pattern for pattern in written if re.search(pattern, generation_prompt)]
        self._empty_block = re.compile(rf"\s*(?:{'|'.join(empty_blocks) or '(?!)'})")

    def clean(self, triple: Triple) -> Triple:
        """Return a row without the empty blocks that the template writes before its answers anyway.

        Raises:
            RowError: a trained answer has a tag of the template; names it.
        """
        if not self._tags:
            return triple
        if triple.tool_chat is not None:
            return replace(triple, tool_chat=self._clean_tool_chat(triple.tool_chat))
        history = tuple((user, self._remove_empty_block(answer)) for user, answer in triple.history)
        cleaned = replace(triple, output=self._remove_empty_block(triple.output), history=history)
        for answer in (cleaned.output, *(answer for _, answer in cleaned.trained_history)):
            self._check(answer)
        return cleaned

    def _clean_tool_chat(self, chat: ToolChat) -> ToolChat:
        messages = chat.messages
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                message["content"] = self._remove_empty_block(message["content"])
                if index in chat.targets:
                    self._check(message["content"])
        return chat.with_messages(messages)

    def _check(self, answer: str) -> None:
        for tag in self._tags:
            if tag in answer:
                raise RowError(
                    "template_tag",
                    f"has {tag} in an answer: a tag that the chat template of the base model writes itself, which "
                    "can't be trained as text; remove the block",
                )

    def _remove_empty_block(self, answer: str) -> str:
        match = self._empty_block.match(answer)
        return answer[match.end() :] if match else answer

    def _find_generation_prompt(self) -> str:
        """Return what the template adds to a chat for the answer that follows."""
        without, with_prompt = (
            self._template.render(self._chat, add_generation_prompt=is_added) for is_added in (False, True)
        )
        return with_prompt.removeprefix(without) if with_prompt.startswith(without) else ""

    def _changes(self, answer: str) -> bool:
        """Whether the template renders an answer other than as it is."""
        try:
            text = self._template.render(
                [*self._chat, {"role": "assistant", "content": answer}], add_generation_prompt=False
            )
        except InputError:
            return False
        return answer not in text


def closing_tag(opening: str) -> str:
    """Return the closing tag of `<think>` or `[THINK]`."""
    return f"{opening[0]}/{opening[1:]}"
