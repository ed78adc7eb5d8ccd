"""A base model's tokenizer and chat template -> the contract, and the proof that it holds."""

from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from instruct_ray.data.contract import Contract, Message, tokenizer_digest
from instruct_ray.data.rendering import Renderer
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
# Answers that the check of a template uses: none may merge with the tokens in front of them.
PROBE_ANSWERS = (PROBE, "12", "(yes) it is,\nall of it.")
# Tried in turn: some templates write a block of thoughts in front of an answer unless they are told not to.
TEMPLATE_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False})


def make_renderer(base: Path, system_prompt: str | None) -> Renderer:
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
    renderer = Renderer(tokenizer, _derive(tokenizer, template, system_prompt))
    for answer in PROBE_ANSWERS:
        _check_boundary(renderer, [QUESTION], answer)
        _check_boundary(renderer, [QUESTION, {"role": "assistant", "content": PROBE}, QUESTION], answer)
    return renderer


def _derive(tokenizer: PreTrainedTokenizerBase, template: str, system_prompt: str | None) -> Contract:
    """Look at what the template puts around an answer."""
    for options in TEMPLATE_OPTIONS:
        prefix, behind = _around(tokenizer, template, PROBE, options)
        if not prefix.strip():
            break
    else:
        raise InputError(f"the chat template writes {prefix!r} in front of every answer; give it one that does not")
    suffix, stop = _first_control_token(tokenizer, behind)
    spaces = f"  {PROBE}  "
    strips = spaces not in _render(tokenizer, template, [QUESTION, _answer(spaces)], options)
    return Contract(
        tokenizer_digest=tokenizer_digest(tokenizer),
        chat_template=template,
        system_prompt=system_prompt,
        layout=LAYOUT,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=stop if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        stop_token_id=stop,
        answer_prefix=prefix,
        answer_suffix=suffix,
        strips_answer=strips,
        template_options=options,
    )


def _around(tokenizer: PreTrainedTokenizerBase, template: str, answer: str, options: dict[str, Any]) -> tuple[str, str]:
    """What the template writes between the prompt and an answer, and behind it."""
    prompt = _render(tokenizer, template, [QUESTION], options, add_generation_prompt=True)
    chat = _render(tokenizer, template, [QUESTION, _answer(answer)], options)
    rest = chat.removeprefix(prompt)
    if not chat.startswith(prompt) or answer not in rest:
        raise InputError(f"the chat template rewrites the prompt when an answer follows: {prompt!r}, then {chat!r}")
    prefix, _, behind = rest.partition(answer)
    return prefix, behind


def _first_control_token(tokenizer: PreTrainedTokenizerBase, behind: str) -> tuple[str, int]:
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


def _check_boundary(renderer: Renderer, messages: list[Message], answer: str) -> None:
    """The whole chat must be prompt and completion joined, whatever the template writes behind."""
    tokenizer, contract = renderer.tokenizer, renderer.contract
    system: list[Message] = []
    if contract.system_prompt is not None:
        system = [{"role": "system", "content": contract.system_prompt}]
    chat = _render(tokenizer, contract.chat_template, [*system, *messages, _answer(answer)], contract.template_options)
    whole = tokenizer(chat, add_special_tokens=False)["input_ids"]
    joined = [*renderer.prompt(messages), *renderer.completion(answer)]
    for position, (expected, found) in enumerate(zip(whole, joined, strict=False)):
        if expected != found:
            raise InputError(
                f"the chat template does not keep prompt and answer apart: token {position} of the chat is "
                f"{tokenizer.decode([expected])!r}, of prompt and answer joined {tokenizer.decode([found])!r}"
            )
    if len(joined) > len(whole):
        raise InputError("the chat template ends the chat before the stop token")


def _render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: list[Message],
    options: dict[str, Any],
    *,
    add_generation_prompt: bool = False,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **options,
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        hint = "; leave data.system_prompt out" if messages[0]["role"] == "system" else ""
        raise InputError(f"the chat template refuses a chat of {roles}: {error}{hint}") from None
    return str(text)


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}
