"""Chat -> text: a chat template, rendered the same on every day."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

# The environment that published templates are written for; `render_jinja_template` around it takes no functions.
from transformers.utils.chat_template_utils import _compile_jinja_template

from instruct_ray.data.rendering.contract import Message
from instruct_ray.errors import InputError

# Some templates write today's date into every prompt: this one instead, which the others of the family write.
TODAY = datetime(2024, 7, 26)
# What a template, a program from elsewhere, can raise.
ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


class ChatTemplate:
    """A compiled chat template with the variables that it is rendered with."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str, options: Mapping[str, Any]) -> None:
        """
        Raises:
            InputError: it is no template.
        """
        self._tokenizer = tokenizer
        self._source = source
        try:
            self._template: Template = _compile_jinja_template(source)
        except TemplateError as error:
            raise InputError(f"the chat template is none: {error}") from None
        # What jinja chains, once copied instead of looked up for every chat.
        self._template.globals = dict(self._template.globals)
        self._variables = {
            **tokenizer.special_tokens_map,
            "tools": None,
            "documents": None,
            "strftime_now": TODAY.strftime,
            **options,
        }

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """A chat -> its text.

        Raises:
            InputError: the template refuses the chat, for instance its order of roles.
        """
        try:
            return self._template.render(
                self._variables, messages=messages, add_generation_prompt=add_generation_prompt
            )
        except ERRORS as error:
            roles = ", ".join(message["role"] for message in messages) or "no messages"
            hint = "; it may take no system message" if "system" in roles else ""
            raise InputError(f"the chat template refuses a chat of {roles}: {error}{hint}") from None

    def control_tokens(self) -> list[str]:
        """Contents of the added tokens that only the template may write: the special ones, and those found in its text.

        The others are part of what a text becomes, such as Gemma's runs of line breaks.
        """
        listed = set(self._tokenizer.chat_control_tokens or ())
        texts = [*self._literals(), self._sample()]
        return [
            token.content
            for token in self._tokenizer.added_tokens_decoder.values()
            if token.special
            or token.content in listed
            or (not token.content.isspace() and any(token.content in text for text in texts))
        ]

    def _literals(self) -> list[str]:
        tree = self._template.environment.parse(self._source)
        constants = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        return constants + [node.data for node in tree.find_all(nodes.TemplateData)]

    def _sample(self) -> str:
        """A chat without content, for tokens that are put together from pieces; empty if the template refuses it."""
        turns: list[Message] = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
        try:
            return self.render([*turns, turns[0]], add_generation_prompt=True)
        except InputError:
            return ""
