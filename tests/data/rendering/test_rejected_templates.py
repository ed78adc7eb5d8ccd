"""Chat templates that can't be rendered exactly are rejected with one clear message."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from instruct_ray.data.rendering.derive_contract import derive_renderer
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
