"""The contract: one rendering, an exact boundary, no control token from a user's text."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from instruct_ray.data.contract import Contract, Message
from instruct_ray.data.rendering import Renderer, load_renderer
from instruct_ray.data.templates import make_renderer
from instruct_ray.errors import InputError

CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
hostile = st.lists(
    st.one_of(st.sampled_from([*CONTROL, "<|im_", "end|>", "\n", "​", "\ue000"]), st.text(max_size=8))
).map("".join)


@pytest.fixture(scope="module")
def renderer(base_folder: Path) -> Renderer:
    return make_renderer(base_folder, None)


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def test_prompt_and_completion_joined_are_the_whole_chat(renderer: Renderer) -> None:
    chat = [*user("How bad is it?"), {"role": "assistant", "content": "High"}]
    whole = renderer.tokenizer.apply_chat_template(chat)["input_ids"]
    joined = [*renderer.prompt(user("How bad is it?")), *renderer.completion("High")]
    assert joined == whole[: len(joined)]
    assert joined[-1] == renderer.contract.stop_token_id == renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(hostile)
def test_text_never_becomes_a_control_token(renderer: Renderer, text: str) -> None:
    control = set(renderer.tokenizer.convert_tokens_to_ids(CONTROL))
    harmless = sum(token in control for token in renderer.prompt(user("x")))
    assert sum(token in control for token in renderer.prompt(user(text))) == harmless
    assert [token for token in renderer.completion(text)[:-1] if token in control] == []


def test_instruction_and_input_are_laid_out(renderer: Renderer) -> None:
    assert renderer.messages("Rate.", "x")[0]["content"] == "Rate.\n\nx"
    assert renderer.messages("Rate.", "")[0]["content"] == "Rate."
    assert renderer.messages("{odd}", "{input}")[0]["content"] == "{odd}\n\n{input}"


def test_the_system_prompt_is_put_in_front_unless_the_chat_has_one(base_folder: Path) -> None:
    renderer = make_renderer(base_folder, "Be brief.")
    own: list[Message] = [{"role": "system", "content": "Be long."}, *user("x")]
    assert "Be brief." in renderer.tokenizer.decode(renderer.prompt(user("x")))
    assert "Be brief." not in renderer.tokenizer.decode(renderer.prompt(own))


def test_the_digest_follows_what_decides_tokens_only(base_folder: Path, renderer: Renderer) -> None:
    assert make_renderer(base_folder, None).contract.digest == renderer.contract.digest
    assert make_renderer(base_folder, "Be brief.").contract.digest != renderer.contract.digest
    assert dataclasses.replace(renderer.contract, chat_template="x").digest != renderer.contract.digest


def test_it_survives_disk_and_damage_is_seen(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "contract.json"
    renderer.contract.save(path)
    assert Contract.load(path) == renderer.contract
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"system_prompt": "other"}))
    with pytest.raises(InputError, match="does not match its recorded digest"):
        Contract.load(path)


def test_another_tokenizer_is_refused(tmp_path: Path, renderer: Renderer, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.save_pretrained(tmp_path)
    renderer.contract.save(tmp_path / "contract.json")
    assert load_renderer(tmp_path).contract == renderer.contract
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is not the contract's"):
        load_renderer(tmp_path)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "puts no token behind an answer"),
        (
            "{% for m in messages %}<|im_start|>{{ m['content'] | trim | upper if m['role'] == 'assistant' and "
            "m['content'] | length > 1 else m['content'] }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>{% endif %}",
            "does not keep prompt and answer apart",
        ),
    ],
)
def test_templates_that_break_the_contract_are_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, template: str | None, message: str
) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=message):
        make_renderer(tmp_path, None)
