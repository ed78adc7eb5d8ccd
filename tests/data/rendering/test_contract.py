"""The contract: one rendering, an exact boundary, no control token from a user's text."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from instruct_ray.data.rendering.contract import Message, PromptContract
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.errors import InputError

CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
hostile = st.lists(
    st.one_of(st.sampled_from([*CONTROL, "<|im_", "end|>", "\n", "​", "\ue000"]), st.text(max_size=8))
).map("".join)


@pytest.fixture(scope="module")
def renderer(base_folder: Path) -> Renderer:
    return derive_renderer(base_folder, None)


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
    renderer = derive_renderer(base_folder, "Be brief.")
    own: list[Message] = [{"role": "system", "content": "Be long."}, *user("x")]
    assert "Be brief." in renderer.tokenizer.decode(renderer.prompt(user("x")))
    assert "Be brief." not in renderer.tokenizer.decode(renderer.prompt(own))


def test_the_digest_follows_what_decides_tokens_only(base_folder: Path, renderer: Renderer) -> None:
    assert derive_renderer(base_folder, None).contract.digest == renderer.contract.digest
    assert derive_renderer(base_folder, "Be brief.").contract.digest != renderer.contract.digest
    assert dataclasses.replace(renderer.contract, chat_template="x").digest != renderer.contract.digest


def test_it_survives_disk_and_damage_is_seen(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "contract.json"
    renderer.contract.save(path)
    assert PromptContract.load(path) == renderer.contract
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"system_prompt": "other"}))
    with pytest.raises(InputError, match="does not match its recorded digest"):
        PromptContract.load(path)


def test_another_tokenizer_is_refused(tmp_path: Path, renderer: Renderer, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.save_pretrained(tmp_path)
    renderer.contract.save(tmp_path / "contract.json")
    assert load_renderer(tmp_path).contract == renderer.contract
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is not the contract's"):
        load_renderer(tmp_path)


# As written before `strips_left`, `strips_right` and the fields of an answer's surroundings.
OLD = {
    "tokenizer_digest": "ab" * 32,
    "chat_template": "{{ messages }}",
    "system_prompt": None,
    "layout": "{instruction}\n\n{input}",
    "bos_token_id": 1,
    "pad_token_id": 2,
    "stop_token_id": 2,
    "contract_version": 1,
    "digest": "51eb1678c012a28968bc760823b8cdd689b6cc7cee51a7e3652090c423bc011a",
}


@pytest.mark.parametrize(
    "later",
    [
        {},
        {"answer_prefix": "", "answer_suffix": "", "strips_answer": False, "template_options": {}},
        {"strips_left": "", "strips_right": ""},
    ],
)
def test_a_contract_saved_by_an_earlier_version_keeps_its_digest(tmp_path: Path, later: dict[str, object]) -> None:
    path = tmp_path / "contract.json"
    path.write_text(json.dumps(OLD | later))
    contract = PromptContract.load(path)
    assert contract.digest == OLD["digest"]
    assert dataclasses.replace(contract, strips_left="\n").digest != OLD["digest"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        (json.dumps({"digest": "x"}), "damaged: no bos_token_id, chat_template"),
        (json.dumps(OLD | {"novelty": 1}), "a later version of this system, which also knows novelty"),
        (json.dumps(OLD | {"contract_version": 2}), "contract version 2, this system renders by 1"),
    ],
)
def test_what_is_no_contract_of_this_system_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "contract.json").write_text(content)
    with pytest.raises(InputError, match=message):
        PromptContract.load(tmp_path / "contract.json")
    with pytest.raises(InputError, match="no contract here"):
        PromptContract.load(tmp_path / "elsewhere.json")


def test_white_space_is_removed_as_the_contract_says(renderer: Renderer) -> None:
    def stripped(**values: object) -> str:
        return dataclasses.replace(renderer.contract, **values).stripped("\n \u3000a\u00a0 \n")

    assert stripped() == "\n \u3000a\u00a0 \n"
    assert stripped(strips_answer=True) == "a"
    assert stripped(strips_left="\n") == " \u3000a\u00a0 \n"
    assert stripped(strips_right="\n ") == "\n \u3000a\u00a0"
