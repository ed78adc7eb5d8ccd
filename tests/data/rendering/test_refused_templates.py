"""Chat templates that can't keep the contract: one clean refusal each."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.errors import InputError
from tests.data.rendering.families import byte_level, special

TURN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TURN, r"does not keep prompt and answer apart|writes '<\|im_start\|>assistant\\n' in front of answers"),
        (TURN.replace("<|im_end|>", "") + ASK, "puts no token behind an answer that could end it"),
        ("{{ raise_exception('no') }}", "refuses a chat of user: no"),
        ("{{ 'a' + 1 }}", "refuses a chat of user: can only concatenate"),
        ("{% for m in messages %}", "the chat template is none"),
        (TURN.replace("m['content']", "'...'") + ASK, "leaves the answer out or changes it"),
        (
            TURN + ASK.replace("assistant\n", "assistant\n<|im_start|>"),
            r"token \d+ of the chat is '.*', of the prompt alone '<\|im_start\|>'",
        ),
        (
            TURN.replace("m['content']", "m['content'].replace('12', '13')") + ASK,
            r"token \d+ of the chat is '1', of prompt and answer joined '12'",
        ),
        (TURN + ASK.replace("\n", " "), "does not keep prompt and answer apart: token"),
    ],
)
def test_templates_that_break_the_contract_are_refused(tmp_path: Path, template: str, message: str) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(special("<|im_start|>", "<|im_end|>")), eos_token="<|im_end|>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message) as refusal:
        derive_renderer(tmp_path, None)
    assert "\n" not in str(refusal.value)


def test_several_templates_and_none_to_stop_at_are_refused(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(special("<|im_end|>")))
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="neither a chat template nor an eos token"):
        derive_renderer(tmp_path, None)
    tokenizer.chat_template = {"default": TURN + ASK, "tool_use": TURN}
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="several chat templates"):
        derive_renderer(tmp_path, None)


def test_a_template_that_drops_the_system_prompt_is_refused(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(special("<|im_start|>", "<|im_end|>")), eos_token="<|im_end|>"
    )
    tokenizer.chat_template = TURN.replace("messages %}", "messages if m['role'] != 'system' %}") + ASK
    tokenizer.save_pretrained(tmp_path)
    assert derive_renderer(tmp_path, None)
    with pytest.raises(InputError, match="leaves system messages out"):
        derive_renderer(tmp_path, "Be brief.")
