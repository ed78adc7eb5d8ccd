"""Finds out, by rendering probes, what a chat template writes around an answer."""

import sys
from typing import Any

from transformers import PreTrainedTokenizerBase

from instruct_ray.data.rendering.answer_tags import OPENING_TAG, closing_tag
from instruct_ray.data.rendering.chat_template import ChatTemplate
from instruct_ray.data.rendering.contract import Message
from instruct_ray.errors import InputError

PROBE_QUESTION: Message = {"role": "user", "content": "How bad is it?"}
PROBE_ANSWER = "High"
# The first that works is used. Some templates write a thinking block before an answer unless it is disabled.
TEMPLATE_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False})
WHITE_SPACE = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if char.isspace())


def find_template_options(
    tokenizer: PreTrainedTokenizerBase, source: str, question: list[Message]
) -> tuple[dict[str, Any], str, str]:
    """Find options with which the template writes no thinking block before an answer.

    Returns:
        The options, the white space that the template then writes before an answer, and the text that it writes after
        one.
    """
    errors: list[InputError] = []
    for options in TEMPLATE_OPTIONS:
        try:
            template = ChatTemplate(tokenizer, source, options)
            before, after = _find_text_around_answer(tokenizer, template, question)
        except InputError as error:
            errors.append(error)
            continue
        if not before.strip():
            return options, before, after
        errors.append(InputError(f"the chat template writes {before!r} before answers; remove it from the template"))
    if tag := _find_opened_block(ChatTemplate(tokenizer, source, {}), question):
        raise InputError(
            f"the chat template opens a block {tag} at the end of every prompt, so that answers begin inside it (a "
            f"thinking model); answers without it can't be trained: use a base model whose template can leave {tag} "
            "out, or remove it from the generation prompt in chat_template.jinja"
        )
    raise errors[0]


def _find_opened_block(template: ChatTemplate, question: list[Message]) -> str | None:
    """Return a tag such as `<think>` that a prompt opens, and that a chat with an answer does not have open there."""
    try:
        prompt = template.render(question, add_generation_prompt=True)
        chat = template.render([*question, answer_message(PROBE_ANSWER)], add_generation_prompt=False)
    except InputError:
        return None
    generation_prompt = prompt.rpartition(question[-1]["content"])[2]
    before_answer = chat.rpartition(question[-1]["content"])[2].partition(PROBE_ANSWER)[0]
    for match in OPENING_TAG.finditer(generation_prompt):
        tag, closing = match[0], closing_tag(match[0])
        is_open = closing not in generation_prompt[match.end() :]
        if is_open and (tag not in before_answer or closing in before_answer):
            return tag
    return None


def _find_text_around_answer(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, question: list[Message]
) -> tuple[str, str]:
    """Return what the template writes between the prompt and an answer, and after the answer."""
    prompt = template.render(question, add_generation_prompt=True)
    chat = template.render([*question, answer_message(PROBE_ANSWER)], add_generation_prompt=False)
    if not chat.startswith(prompt):
        chat_ids, prompt_ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (chat, prompt))
        check_prefix(tokenizer, chat_ids, prompt_ids, "of the prompt alone")
        raise InputError("the chat template does not keep prompt and answer apart: they share a token")
    before, answer, after = chat.removeprefix(prompt).partition(PROBE_ANSWER)
    if not answer:
        raise InputError(f"the chat template omits or changes the answer: {chat!r} does not contain {PROBE_ANSWER!r}")
    return before, after


def find_stop_token(tokenizer: PreTrainedTokenizerBase, text_after: str) -> tuple[str, int]:
    """Find the first added token in what the template writes after an answer.

    Returns:
        The text between the answer and that token, and the token's id.
    """
    # At the same position, the longest.
    candidates = [
        (text_after.index(token.content), -len(token.content), token_id)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.content in text_after and not token.content.isspace()
    ]
    if not candidates:
        raise InputError(f"the chat template writes no token after an answer that could end it, only {text_after!r}")
    start, _, token_id = min(candidates)
    return text_after[:start], int(token_id)


def find_stripped_characters(template: ChatTemplate, question: list[Message]) -> tuple[str, str]:
    """Return the white space characters that the template removes before an answer, and those it removes after one."""

    def render(answer: str) -> str:
        return template.render([*question, answer_message(answer)], add_generation_prompt=False)

    stripped = render(PROBE_ANSWER)
    left = [char for char in WHITE_SPACE if render(char + PROBE_ANSWER) == stripped]
    right = [char for char in WHITE_SPACE if render(PROBE_ANSWER + char) == stripped]
    return "".join(left), "".join(right)


def check_prefix(tokenizer: PreTrainedTokenizerBase, chat_ids: list[int], ids: list[int], name: str) -> None:
    """Check that the tokens of a chat begin with others, which `name` describes.

    Raises:
        InputError: They don't; shows the first that differs.
    """
    for position, (chat_id, token_id) in enumerate(zip(chat_ids, ids, strict=False)):
        if chat_id != token_id:
            raise InputError(
                f"the chat template does not keep prompt and answer apart: token {position} of the chat is "
                f"{tokenizer.decode([chat_id])!r}, {name} {tokenizer.decode([token_id])!r}"
            )
    if len(ids) > len(chat_ids):
        raise InputError("the chat template ends the chat before the stop token")


def answer_message(text: str) -> Message:
    """Return an answer as a message."""
    return {"role": "assistant", "content": text}
