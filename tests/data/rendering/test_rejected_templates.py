"""Chat templates that can't be rendered exactly are rejected with one clear message."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from tests.data.rendering.families import byte_level, special

MESSAGES = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
GENERATION_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def make_tokenizer(template: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(special("<|im_start|>", "<|im_end|>")), eos_token="<|im_end|>"
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (MESSAGES, r"does not keep prompt and answer apart|writes '<\|im_start\|>assistant\\n' before answers"),
        (MESSAGES.replace("<|im_end|>", "") + GENERATION_PROMPT, "writes no token after an answer that could end it"),
        ("{{ raise_exception('no') }}", "rejects a chat of user: no"),
        ("{{ 'a' + 1 }}", "rejects a chat of user: can only concatenate"),
        ("{% for m in messages %}", "the chat template is not valid Jinja: "),
        (MESSAGES.replace("m['content']", "'...'") + GENERATION_PROMPT, "omits or changes the answer"),
        (
            MESSAGES + GENERATION_PROMPT.replace("assistant\n", "assistant\n<|im_start|>"),
            r"token \d+ of the chat is '.*', of the prompt alone '<\|im_start\|>'",
        ),
        (
            MESSAGES.replace("m['content']", "m['content'].replace('12', '13')") + GENERATION_PROMPT,
            r"token \d+ of the chat is '1', of prompt and answer joined '12'",
        ),
        (MESSAGES + GENERATION_PROMPT.replace("\n", " "), "does not keep prompt and answer apart: token"),
    ],
)
def test_unusable_template_is_rejected(tmp_path: Path, template: str, message: str) -> None:
    make_tokenizer(template).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message) as rejection:
        derive_renderer(tmp_path, None)
    assert "\n" not in str(rejection.value)


def test_several_templates_and_no_eos_token_are_rejected(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(special("<|im_end|>")))
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="neither a chat template nor an eos token"):
        derive_renderer(tmp_path, None)
    tokenizer.chat_template = {"default": MESSAGES + GENERATION_PROMPT, "tool_use": MESSAGES}
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="several chat templates"):
        derive_renderer(tmp_path, None)


def test_template_that_ignores_the_system_prompt_is_rejected(tmp_path: Path) -> None:
    without_system = MESSAGES.replace("messages %}", "messages if m['role'] != 'system' %}")
    make_tokenizer(without_system + GENERATION_PROMPT).save_pretrained(tmp_path)
    assert derive_renderer(tmp_path, None)
    with pytest.raises(InputError, match="ignores system messages"):
        derive_renderer(tmp_path, "Be brief.")


NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('start with system') }}{% endif %}" + MESSAGES


def test_system_prompt_satisfies_a_template_that_needs_a_system_message(tmp_path: Path) -> None:
    make_tokenizer(NEEDS_SYSTEM + GENERATION_PROMPT).save_pretrained(tmp_path)
    renderer = derive_renderer(tmp_path, "Be brief.")
    assert renderer.contract.system_prompt == "Be brief."
    row = Triple("a", "How bad is it?", "", "High", history=(("And now?", "Low"),))
    own_system = Triple("b", "How bad is it?", "", "High", "Be kind.")
    chats, kind = renderer.examples(["a", "b"], [row, own_system])
    assert isinstance(chats, list) and isinstance(kind, list)
    start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert all(renderer.tokenizer.decode(example.prompt_ids).startswith(start) for example in chats)
    assert renderer.tokenizer.decode(kind[0].prompt_ids).startswith("<|im_start|>system\nBe kind.<|im_end|>")
    assert chats[0].completion_ids == renderer.completion("Low")
    special_tokens = ["<|im_start|>", "<|im_end|>"]
    assert renderer.template.special_tokens() == special_tokens
    with pytest.raises(InputError, match=r"start with system; it needs a system message: set data\.system_prompt"):
        derive_renderer(tmp_path, None)
    make_tokenizer(
        NEEDS_SYSTEM.replace("m['content']", "'' if m.role == 'system' else m.content") + GENERATION_PROMPT
    ).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="needs system messages, but ignores their content"):
        derive_renderer(tmp_path, "Be brief.")


STRIPS_THOUGHTS = MESSAGES.replace("m['content']", "m.content.split('</think>')[-1].lstrip('\\n')")


@pytest.mark.parametrize(
    ("messages", "opened"),
    [
        (STRIPS_THOUGHTS, "<think>\n"),
        (MESSAGES, "<think>"),
        (MESSAGES, "[THINK]"),
        # Writes an empty thought before an answer without one.
        (
            MESSAGES.replace(
                "m['content']", "('<think>\\n\\n</think>\\n\\n' if m.role == 'assistant' else '') + m.content"
            ),
            "<think>\n",
        ),
    ],
)
def test_prompt_that_opens_a_thinking_block_is_rejected_with_that_reason(
    tmp_path: Path, messages: str, opened: str
) -> None:
    template = messages + GENERATION_PROMPT.replace("assistant\n", f"assistant\n{opened}")
    make_tokenizer(template).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"opens a block .* at the end of every prompt") as rejection:
        derive_renderer(tmp_path, None)
    assert f"a block {opened.strip()} " in str(rejection.value) and "\n" not in str(rejection.value)
