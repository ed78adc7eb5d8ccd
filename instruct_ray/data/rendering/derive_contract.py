"""A base model's tokenizer and chat template -> the contract, and the proof that it holds."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from instruct_ray.base_model.resolve import BaseModelInfo
from instruct_ray.data.rendering.chat_template import ChatTemplate
from instruct_ray.data.rendering.contract import CONTRACT_FILE, Message, PromptContract, tokenizer_digest
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.errors import InputError

LAYOUT = "{instruction}\n\n{input}"
# For base models without a chat template, in plain text, so that it needs no token which the model never saw.
DEFAULT_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% else %}### Response:\n{{ message['content'] }}{{ eos_token }}\n\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
QUESTION: Message = {"role": "user", "content": "How bad is it?"}
PROBE = "High"
# Answers that the check of a template uses: none may merge with the tokens in front of them. (With punctuation in front
# they can: Mistral's vocabulary has `](`. Training and serving never see such a token, as they tokenise them apart.)
PROBE_ANSWERS = (PROBE, "12", "Yes (it is),\nall of it.", "Low \n")
# Tried in turn: some templates write a block of thoughts in front of an answer unless they are told not to.
TEMPLATE_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False})
WHITE_SPACE = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if char.isspace())


def resolve_renderer(base: BaseModelInfo, system_prompt: str | None) -> Renderer:
    """The renderer for a base model. One that an earlier run tuned keeps to its contract.

    Raises:
        InputError: as `make_renderer`, or the contract of the earlier run has another system prompt or tokenizer.
    """
    if not (base.initial_model_dir / CONTRACT_FILE).is_file():
        return derive_renderer(base.folder, system_prompt)
    renderer = load_renderer(base.initial_model_dir)
    found, wanted = renderer.contract, replace(renderer.contract, system_prompt=system_prompt)
    if found.digest != wanted.digest:
        raise InputError(
            f"data.system_prompt: {base.name} was tuned by contract {found.digest[:12]} with the system prompt "
            f"{found.system_prompt!r}, {system_prompt!r} would make it {wanted.digest[:12]}; write the same one"
        )
    return renderer


def derive_renderer(base: Path, system_prompt: str | None) -> Renderer:
    """Derive the contract of a base model from its tokenizer and chat template, and prove that it holds.

    A base without a template gets `DEFAULT_TEMPLATE`.

    Raises:
        InputError: the template does not keep prompt and answer apart, or refuses the system prompt.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    template = tokenizer.chat_template
    if template is None:
        if tokenizer.eos_token is None:
            raise InputError(f"{base}: its tokenizer has neither a chat template nor an eos token to stop at")
        template = DEFAULT_TEMPLATE
    if not isinstance(template, str):
        raise InputError(f"{base}: its tokenizer has several chat templates; leave one in chat_template.jinja")
    contract = _derive(tokenizer, template)
    renderer = Renderer(tokenizer, contract)
    history: list[Message] = [QUESTION, _answer(PROBE), QUESTION]
    for messages in [QUESTION], history:
        for answer in PROBE_ANSWERS:
            _check_boundary(renderer, messages, answer)
    if system_prompt is None:
        return renderer
    with_system = Renderer(tokenizer, replace(contract, system_prompt=system_prompt))
    for messages in [QUESTION], history:
        _check_system(renderer, with_system, messages)
    return with_system


def _derive(tokenizer: PreTrainedTokenizerBase, source: str) -> PromptContract:
    """The contract without a system prompt: look at what the template puts around an answer."""
    options, prefix, behind = _options_without_thinking(tokenizer, source)
    template = ChatTemplate(tokenizer, source, options)
    suffix, stop = _first_added_token(tokenizer, behind)
    prompt = template.render([QUESTION], add_generation_prompt=True)
    [*_, last] = tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids
    left, right = _strips(template)
    # Such a token takes the white space beside it for its own.
    if last in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[last].rstrip:
        prefix, left = "", WHITE_SPACE
    if tokenizer.added_tokens_decoder[stop].lstrip:
        suffix, right = "", WHITE_SPACE
    strips_all = left == right == WHITE_SPACE
    return PromptContract(
        tokenizer_digest=tokenizer_digest(tokenizer),
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


def _options_without_thinking(tokenizer: PreTrainedTokenizerBase, source: str) -> tuple[dict[str, Any], str, str]:
    """(options with which the template writes no thoughts, its white space in front of an answer, its text behind)."""
    refusals: list[InputError] = []
    for options in TEMPLATE_OPTIONS:
        try:
            prefix, behind = _around(tokenizer, ChatTemplate(tokenizer, source, options))
        except InputError as error:
            refusals.append(error)
            continue
        if not prefix.strip():
            return options, prefix, behind
        refusals.append(InputError(f"the chat template writes {prefix!r} in front of answers; take it out"))
    raise refusals[0]


def _around(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> tuple[str, str]:
    """What the template writes between the prompt and an answer, and behind it."""
    prompt = template.render([QUESTION], add_generation_prompt=True)
    chat = template.render([QUESTION, _answer(PROBE)], add_generation_prompt=False)
    if not chat.startswith(prompt):
        whole, asked = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (chat, prompt))
        _check_prefix(tokenizer, whole, asked, "of the prompt alone")
        raise InputError("the chat template does not keep prompt and answer apart: they share a token")
    prefix, answer, behind = chat.removeprefix(prompt).partition(PROBE)
    if not answer:
        raise InputError(f"the chat template leaves the answer out or changes it: {chat!r} has no {PROBE!r}")
    return prefix, behind


def _first_added_token(tokenizer: PreTrainedTokenizerBase, behind: str) -> tuple[str, int]:
    """(text in front of it, id) of the token that the template puts behind an answer."""
    found = [
        (behind.index(token.content), -len(token.content), token_id)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.content in behind and not token.content.isspace()
    ]
    if not found:
        raise InputError(f"the chat template puts no token behind an answer that could end it, only {behind!r}")
    start, _, token_id = min(found)
    return behind[:start], int(token_id)


def _strips(template: ChatTemplate) -> tuple[str, str]:
    """The white space that the template removes in front of an answer, and behind it."""

    def rendered(answer: str) -> str:
        return template.render([QUESTION, _answer(answer)], add_generation_prompt=False)

    bare = rendered(PROBE)
    left = [char for char in WHITE_SPACE if rendered(char + PROBE) == bare]
    right = [char for char in WHITE_SPACE if rendered(PROBE + char) == bare]
    return "".join(left), "".join(right)


def _check_boundary(renderer: Renderer, messages: list[Message], answer: str) -> None:
    """The whole chat must be prompt and completion joined, whatever the template writes behind."""
    chat = renderer.template.render([*messages, _answer(answer)], add_generation_prompt=False)
    [whole] = renderer.encoder.controlled([chat])
    joined = [*renderer.prompt(messages), *renderer.completion(answer)]
    _check_prefix(renderer.tokenizer, whole, joined, "of prompt and answer joined")


def _check_prefix(tokenizer: PreTrainedTokenizerBase, whole: list[int], part: list[int], name: str) -> None:
    for position, (expected, found) in enumerate(zip(whole, part, strict=False)):
        if expected != found:
            raise InputError(
                f"the chat template does not keep prompt and answer apart: token {position} of the chat is "
                f"{tokenizer.decode([expected])!r}, {name} {tokenizer.decode([found])!r}"
            )
    if len(part) > len(whole):
        raise InputError("the chat template ends the chat before the stop token")


def _check_system(bare: Renderer, renderer: Renderer, messages: list[Message]) -> None:
    """The system prompt must be in the prompt, and change nothing behind the last question: then the boundary is the
    one that was proved without it. (Mistral's moves to the last question, so no whole chat begins with the prompt.)"""
    prompt = renderer.contract.system_prompt or ""
    system: Message = {"role": "system", "content": prompt}
    try:
        text = renderer.template.render([system, *messages], add_generation_prompt=True)
    except InputError as error:
        raise InputError(f"{error}: leave data.system_prompt out") from None
    if prompt.strip() not in text:
        raise InputError("the chat template leaves system messages out: leave data.system_prompt out as well")
    expected = bare.template.render(messages, add_generation_prompt=True).rpartition(QUESTION["content"])[2]
    if text.rpartition(QUESTION["content"])[2] != expected:
        raise InputError("the chat template writes another prompt behind a question if there is a system message")


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}
