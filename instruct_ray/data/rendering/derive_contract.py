"""Derives the contract from a base model's tokenizer and chat template, and checks that rendering by it is exact."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from instruct_ray.base_model.info import BaseModelInfo
from instruct_ray.data.rendering.chat_template import ChatTemplate
from instruct_ray.data.rendering.contract import Message, PromptContract, compute_tokenizer_digest
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.errors import InputError
from instruct_ray.run.folder import CONTRACT_FILE

LAYOUT = "{instruction}\n\n{input}"
# For base models without a chat template. It is plain text, so it needs no token that the model was not trained on.
DEFAULT_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% else %}### Response:\n{{ message['content'] }}{{ eos_token }}\n\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
PROBE_QUESTION: Message = {"role": "user", "content": "How bad is it?"}
PROBE_ANSWER = "High"
# Answers to check a template with. They begin with letters and digits, because punctuation can merge with the tokens
# before it (Mistral's vocabulary has `](`); training and serving tokenize prompt and answer apart, so theirs can't.
PROBE_ANSWERS = (PROBE_ANSWER, "12", "Yes (it is),\nall of it.", "Low \n")
# The first that works is used. Some templates write a thinking block before an answer unless it is disabled.
TEMPLATE_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False})
WHITE_SPACE = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if char.isspace())


def resolve_renderer(base_model: BaseModelInfo, system_prompt: str | None) -> Renderer:
    """Make the renderer for the data of a run.

    If an earlier run tuned the base model, its contract is kept (`load_renderer`). Otherwise a contract is derived from
    the base model (`derive_renderer`).

    Raises:
        InputError: No contract can be derived, see `derive_renderer`, or the one of the earlier run can't be loaded or
            has another system prompt.
    """
    if not (base_model.initial_model_dir / CONTRACT_FILE).is_file():
        return derive_renderer(base_model.folder, system_prompt)
    renderer = load_renderer(base_model.initial_model_dir)
    contract, expected = renderer.contract, replace(renderer.contract, system_prompt=system_prompt)
    if contract.digest != expected.digest:
        raise InputError(
            f"data.system_prompt: {base_model.name} was tuned with contract {contract.digest[:12]} and the system "
            f"prompt {contract.system_prompt!r}; {system_prompt!r} would change the contract to "
            f"{expected.digest[:12]}; use the same system prompt"
        )
    return renderer


def derive_renderer(base_dir: Path, system_prompt: str | None) -> Renderer:
    """Derive the contract of a base model that has none, and check that rendering by it is exact.

    A base model without a chat template gets `DEFAULT_TEMPLATE`.

    Raises:
        InputError: There is no single usable template, it doesn't keep prompt and answer apart, or it doesn't support
            the system prompt.
    """
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    template = tokenizer.chat_template
    if template is None:
        if tokenizer.eos_token is None:
            raise InputError(f"{base_dir}: the tokenizer has neither a chat template nor an eos token to stop at")
        template = DEFAULT_TEMPLATE
    if not isinstance(template, str):
        raise InputError(f"{base_dir}: the tokenizer has several chat templates; keep one in chat_template.jinja")
    contract = _derive(tokenizer, template)
    renderer = Renderer(tokenizer, contract)
    history: list[Message] = [PROBE_QUESTION, _answer(PROBE_ANSWER), PROBE_QUESTION]
    for messages in [PROBE_QUESTION], history:
        for answer in PROBE_ANSWERS:
            _check_boundary(renderer, messages, answer)
    if system_prompt is None:
        return renderer
    with_system = Renderer(tokenizer, replace(contract, system_prompt=system_prompt))
    for messages in [PROBE_QUESTION], history:
        _check_system_prompt(renderer, with_system, messages)
    return with_system


def _derive(tokenizer: PreTrainedTokenizerBase, source: str) -> PromptContract:
    """Derive the contract without a system prompt from what the template writes around an answer."""
    options, prefix, text_after = _find_template_options(tokenizer, source)
    template = ChatTemplate(tokenizer, source, options)
    suffix, stop = _find_stop_token(tokenizer, text_after)
    left, right = _find_stripped_characters(template)
    # An added token can absorb the white space beside it.
    prompt = template.render([PROBE_QUESTION], add_generation_prompt=True)
    [*_, last] = tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids
    if last in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[last].rstrip:
        prefix, left = "", WHITE_SPACE
    if tokenizer.added_tokens_decoder[stop].lstrip:
        suffix, right = "", WHITE_SPACE
    strips_all = left == right == WHITE_SPACE
    return PromptContract(
        tokenizer_digest=compute_tokenizer_digest(tokenizer),
        chat_template=source,
        system_prompt=None,
        layout=LAYOUT,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=stop if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        stop_token_id=stop,
        answer_prefix=prefix,
        answer_suffix=suffix,
        strips_answer=strips_all,
        strips_left="" if strips_all else left,
        strips_right="" if strips_all else right,
        template_options=options,
    )


def _find_template_options(tokenizer: PreTrainedTokenizerBase, source: str) -> tuple[dict[str, Any], str, str]:
    """Find options with which the template writes no thinking block before an answer.

    Returns:
        The options, the white space that the template then writes before an answer, and the text that it writes after
        one.
    """
    errors: list[InputError] = []
    for options in TEMPLATE_OPTIONS:
        try:
            before, after = _find_text_around_answer(tokenizer, ChatTemplate(tokenizer, source, options))
        except InputError as error:
            errors.append(error)
            continue
        if not before.strip():
            return options, before, after
        errors.append(InputError(f"the chat template writes {before!r} before answers; remove it from the template"))
    raise errors[0]


def _find_text_around_answer(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> tuple[str, str]:
    """Return what the template writes between the prompt and an answer, and after the answer."""
    prompt = template.render([PROBE_QUESTION], add_generation_prompt=True)
    chat = template.render([PROBE_QUESTION, _answer(PROBE_ANSWER)], add_generation_prompt=False)
    if not chat.startswith(prompt):
        chat_ids, prompt_ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (chat, prompt))
        _check_prefix(tokenizer, chat_ids, prompt_ids, "of the prompt alone")
        raise InputError("the chat template does not keep prompt and answer apart: they share a token")
    before, answer, after = chat.removeprefix(prompt).partition(PROBE_ANSWER)
    if not answer:
        raise InputError(f"the chat template omits or changes the answer: {chat!r} does not contain {PROBE_ANSWER!r}")
    return before, after


def _find_stop_token(tokenizer: PreTrainedTokenizerBase, text_after: str) -> tuple[str, int]:
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


def _find_stripped_characters(template: ChatTemplate) -> tuple[str, str]:
    """Return the white space characters that the template removes before an answer, and those it removes after one."""

    def render(answer: str) -> str:
        return template.render([PROBE_QUESTION, _answer(answer)], add_generation_prompt=False)

    stripped = render(PROBE_ANSWER)
    left = [char for char in WHITE_SPACE if render(char + PROBE_ANSWER) == stripped]
    right = [char for char in WHITE_SPACE if render(PROBE_ANSWER + char) == stripped]
    return "".join(left), "".join(right)


def _check_boundary(renderer: Renderer, messages: list[Message], answer: str) -> None:
    """Check that the tokens of the chat begin with those of the prompt and the completion."""
    chat = renderer.template.render([*messages, _answer(answer)], add_generation_prompt=False)
    [chat_ids] = renderer.encoder.encode_with_special([chat])
    joined_ids = [*renderer.prompt(messages), *renderer.completion(answer)]
    _check_prefix(renderer.tokenizer, chat_ids, joined_ids, "of prompt and answer joined")


def _check_prefix(tokenizer: PreTrainedTokenizerBase, chat_ids: list[int], ids: list[int], name: str) -> None:
    for position, (chat_id, token_id) in enumerate(zip(chat_ids, ids, strict=False)):
        if chat_id != token_id:
            raise InputError(
                f"the chat template does not keep prompt and answer apart: token {position} of the chat is "
                f"{tokenizer.decode([chat_id])!r}, {name} {tokenizer.decode([token_id])!r}"
            )
    if len(ids) > len(chat_ids):
        raise InputError("the chat template ends the chat before the stop token")


def _check_system_prompt(without_system: Renderer, with_system: Renderer, messages: list[Message]) -> None:
    """Check that the system prompt is in the prompt and changes nothing after the last question.

    The boundary is then the one that was checked without it. (Checking it again would fail for Mistral, whose template
    moves the system prompt to the last question, so that no chat with an answer begins with the prompt.)
    """
    prompt = with_system.contract.system_prompt or ""
    system: Message = {"role": "system", "content": prompt}
    try:
        text = with_system.template.render([system, *messages], add_generation_prompt=True)
    except InputError as error:
        raise InputError(f"{error}; remove data.system_prompt") from None
    if prompt.strip() not in text:
        raise InputError("the chat template ignores system messages; remove data.system_prompt")
    question = PROBE_QUESTION["content"]
    expected = without_system.template.render(messages, add_generation_prompt=True).rpartition(question)[2]
    if text.rpartition(question)[2] != expected:
        raise InputError("the chat template writes other text after a question if there is a system message")


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}
