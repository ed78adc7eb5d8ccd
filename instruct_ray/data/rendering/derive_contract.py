"""Derives the contract from a base model's tokenizer and chat template, and checks that rendering by it is exact."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from instruct_ray.base_model.info import BaseModelInfo
from instruct_ray.base_model.tokenizer import load_tokenizer
from instruct_ray.data.rendering.chat_template import ChatTemplate
from instruct_ray.data.rendering.contract import Message, PromptContract, compute_tokenizer_digest
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.data.rendering.template_probes import (
    PROBE_ANSWER,
    PROBE_QUESTION,
    WHITE_SPACE,
    answer_message,
    check_prefix,
    find_stop_token,
    find_stripped_characters,
    find_template_options,
)
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
# Answers to check a template with. They begin with letters and digits, because punctuation can merge with the tokens
# before it (Mistral's vocabulary has `](`); training and serving tokenize prompt and answer apart, so theirs can't.
PROBE_ANSWERS = (PROBE_ANSWER, "12", "Yes (it is),\nall of it.", "Low \n")


def resolve_renderer(
    base_model: BaseModelInfo, system_prompt: str | None, labels: Sequence[str] | None = None
) -> Renderer:
    """Make the renderer for the data of a run; its contract lists the labels.

    If an earlier run tuned the base model, its contract is kept (`load_renderer`). Otherwise a contract is derived from
    the base model (`derive_renderer`).

    Raises:
        InputError: No contract can be derived, see `derive_renderer`, or the one of the earlier run can't be loaded or
            has another system prompt.
    """
    renderer = _resolve_renderer(base_model, system_prompt)
    expected_labels = None if labels is None else list(labels)
    if renderer.contract.labels == expected_labels:
        return renderer
    return Renderer(renderer.tokenizer, replace(renderer.contract, labels=expected_labels))


def _resolve_renderer(base_model: BaseModelInfo, system_prompt: str | None) -> Renderer:
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
    tokenizer = load_tokenizer(base_dir)
    template = tokenizer.chat_template
    if template is None:
        if tokenizer.eos_token is None:
            raise InputError(f"{base_dir}: the tokenizer has neither a chat template nor an eos token to stop at")
        template = DEFAULT_TEMPLATE
    if not isinstance(template, str):
        raise InputError(f"{base_dir}: the tokenizer has several chat templates; keep one in chat_template.jinja")
    needed = _find_needed_messages(tokenizer, template, system_prompt)
    contract = _derive(tokenizer, template, needed)
    renderer = Renderer(tokenizer, replace(contract, system_prompt=system_prompt) if needed else contract)
    history: list[Message] = [PROBE_QUESTION, answer_message(PROBE_ANSWER), PROBE_QUESTION]
    for messages in [PROBE_QUESTION], history:
        for answer in PROBE_ANSWERS:
            _check_boundary(renderer, needed, messages, answer)
    if system_prompt is None or needed:
        return renderer
    with_system = Renderer(tokenizer, replace(contract, system_prompt=system_prompt))
    for messages in [PROBE_QUESTION], history:
        _check_system_prompt(renderer, with_system, messages)
    return with_system


def _find_needed_messages(tokenizer: PreTrainedTokenizerBase, source: str, system_prompt: str | None) -> list[Message]:
    """Return the system message that the template needs before every question; none for most templates.

    Raises:
        InputError: the template needs one, but there is no system prompt, or it leaves it out.
    """
    template = ChatTemplate(tokenizer, source, {})
    needed: list[Message] = [{"role": "system", "content": system_prompt or "Be brief."}]
    try:
        template.render([PROBE_QUESTION], add_generation_prompt=True)
    except InputError as error:
        try:
            text = template.render([*needed, PROBE_QUESTION], add_generation_prompt=True)
        except InputError:
            raise error from None
        if system_prompt is None:
            raise InputError(f"{error}; it needs a system message: set data.system_prompt") from None
        if system_prompt.strip() not in text:
            raise InputError("the chat template needs system messages, but ignores their content") from None
        return needed
    return []


def _derive(tokenizer: PreTrainedTokenizerBase, source: str, needed: list[Message]) -> PromptContract:
    """Derive the contract without a system prompt from what the template writes around an answer.

    Args:
        tokenizer: The tokenizer.
        source: The chat template.
        needed: Messages before the question without which the template rejects a chat.
    """
    question = [*needed, PROBE_QUESTION]
    options, prefix, text_after = find_template_options(tokenizer, source, question)
    template = ChatTemplate(tokenizer, source, options)
    suffix, stop = find_stop_token(tokenizer, text_after)
    left, right = find_stripped_characters(template, question)
    # An added token can absorb the white space beside it.
    prompt = template.render(question, add_generation_prompt=True)
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


def _check_boundary(renderer: Renderer, needed: list[Message], messages: list[Message], answer: str) -> None:
    """Check that the tokens of the chat begin with those of the prompt and the completion."""
    chat = renderer.template.render([*needed, *messages, answer_message(answer)], add_generation_prompt=False)
    [chat_ids] = renderer.encoder.encode_with_special([chat])
    joined_ids = [*renderer.prompt(messages), *renderer.completion(answer)]
    check_prefix(renderer.tokenizer, chat_ids, joined_ids, "of prompt and answer joined")


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
