"""Renders chats as text with a chat template, independently of the date."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

# The Jinja environment that published templates are written for. The public `render_jinja_template` accepts no
# functions as variables, which `strftime_now` is.
from transformers.utils.chat_template_utils import _compile_jinja_template

from instruct_ray.data.rendering.contract import Message
from instruct_ray.errors import InputError, one_line

# For templates that write today's date into every prompt. Other templates of Llama 3 contain this date literally.
FIXED_DATE = datetime(2024, 7, 26)
# A template is a program from elsewhere: what running it can raise.
RENDER_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


class ChatTemplate:
    """A compiled chat template and the variables it is rendered with."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str, options: Mapping[str, Any]) -> None:
        """Compile the template.

        Args:
            tokenizer: Its special tokens are variables of the template.
            source: The Jinja source.
            options: Further variables, such as `enable_thinking`.

        Raises:
            InputError: The template is not valid Jinja.
        """
        self._tokenizer = tokenizer
        self._source = source
        try:
            self._template: Template = _compile_jinja_template(source)
        except TemplateError as error:
            raise InputError(f"the chat template is not valid Jinja: {one_line(error)}") from None
        # Jinja's globals are a chain of mappings; a flat copy saves its look-ups in every chat.
        self._template.globals = dict(self._template.globals)
        self._variables = {
            **tokenizer.special_tokens_map,
            "tools": None,
            "documents": None,
            "strftime_now": FIXED_DATE.strftime,
            **options,
        }

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Render a chat as text, with the function definitions of its tools if it has any.

        Raises:
            InputError: The template rejects the chat, for instance its order of roles.
        """
        try:
            variables = self._variables if not tools else {**self._variables, "tools": tools}
            return self._template.render(variables, messages=messages, add_generation_prompt=add_generation_prompt)
        except RENDER_ERRORS as error:
            roles = ", ".join(message["role"] for message in messages) or "no messages"
            hint = "; it may not support system messages" if "system" in roles else ""
            raise InputError(f"the chat template rejects a chat of {roles}: {one_line(error)}{hint}") from None

    def special_tokens(self) -> list[str]:
        """List the contents of the special tokens, as `encoding` defines them.

        Added tokens that the template doesn't write are ordinary text, and so are those of white space, such as Gemma's
        runs of line breaks.
        """
        listed = set(self._tokenizer.chat_control_tokens or ())
        texts = self.texts()
        return [
            token.content
            for token in self._tokenizer.added_tokens_decoder.values()
            if token.special
            or token.content in listed
            or (not token.content.isspace() and any(token.content in text for text in texts))
        ]

    def texts(self) -> list[str]:
        """List the texts that the template can write: those in its source, and a chat without content."""
        return [*self._literals(), self._render_sample()]

    def _literals(self) -> list[str]:
        """List the texts in the source that the template can write."""
        tree = self._template.environment.parse(self._source)
        constants = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        return constants + [node.data for node in tree.find_all(nodes.TemplateData)]

    def _render_sample(self) -> str:
        """Render a chat without content, which shows tokens that the template builds from parts of text.

        It is empty if the template rejects the chat.
        """
        turns: list[Message] = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
        system: Message = {"role": "system", "content": ""}
        # Some templates demand a system message, others reject one.
        for chat in ([*turns, turns[0]], [system, *turns, turns[0]]):
            try:
                return self.render(chat, add_generation_prompt=True)
            except InputError:
                continue
        return ""
