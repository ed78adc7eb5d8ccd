"""The contract file and its digest, and rendering by a contract: exact boundary, no special token from users."""

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
from tests.data.rendering.families import assistant, user

SPECIAL_TOKENS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
hostile_texts = st.lists(
    st.one_of(st.sampled_from([*SPECIAL_TOKENS, "<|im_", "end|>", "\n", "\u200b", "\ue000"]), st.text(max_size=8))
).map("".join)


@pytest.fixture(scope="module")
def renderer(base_folder: Path) -> Renderer:
    return derive_renderer(base_folder, None)


def test_chat_tokens_begin_with_prompt_and_completion(renderer: Renderer) -> None:
    question = user("How bad is it?")
    chat_ids = renderer.tokenizer.apply_chat_template([*question, assistant("High")])["input_ids"]
    joined = [*renderer.prompt(question), *renderer.completion("High")]
    assert joined == chat_ids[: len(joined)]
    assert joined[-1] == renderer.contract.stop_token_id == renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(hostile_texts)
def test_user_text_never_becomes_a_special_token(renderer: Renderer, text: str) -> None:
    special_ids = set(renderer.tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS))
    expected = sum(token in special_ids for token in renderer.prompt(user("x")))
    assert sum(token in special_ids for token in renderer.prompt(user(text))) == expected
    assert [token for token in renderer.completion(text)[:-1] if token in special_ids] == []


def test_layout_joins_instruction_and_input(renderer: Renderer) -> None:
    assert renderer.messages("Rate.", "x")[0]["content"] == "Rate.\n\nx"
    assert renderer.messages("Rate.", "")[0]["content"] == "Rate."
    assert renderer.messages("{odd}", "{input}")[0]["content"] == "{odd}\n\n{input}"


def test_system_prompt_is_added_unless_the_chat_has_a_system_message(base_folder: Path) -> None:
    renderer = derive_renderer(base_folder, "Be brief.")
    with_own: list[Message] = [{"role": "system", "content": "Be long."}, *user("x")]
    assert "Be brief." in renderer.tokenizer.decode(renderer.prompt(user("x")))
    assert "Be brief." not in renderer.tokenizer.decode(renderer.prompt(with_own))


def test_digest_depends_on_what_decides_tokens(base_folder: Path, renderer: Renderer) -> None:
    assert derive_renderer(base_folder, None).contract.digest == renderer.contract.digest
    assert derive_renderer(base_folder, "Be brief.").contract.digest != renderer.contract.digest
    assert dataclasses.replace(renderer.contract, chat_template="x").digest != renderer.contract.digest


def test_save_and_load_detect_a_changed_file(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "contract.json"
    renderer.contract.save(path)
    assert PromptContract.load(path) == renderer.contract
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"system_prompt": "other"}))
    with pytest.raises(InputError, match="does not match its recorded digest"):
        PromptContract.load(path)


def test_load_renderer_rejects_another_tokenizer(
    tmp_path: Path, renderer: Renderer, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.save_pretrained(tmp_path)
    renderer.contract.save(tmp_path / "contract.json")
    assert load_renderer(tmp_path).contract == renderer.contract
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is not the contract's"):
        load_renderer(tmp_path)


# As written before the fields on the text around an answer and on stripping existed.
OLD_CONTRACT = {
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
    "later_fields",
    [
        {},
        {"answer_prefix": "", "answer_suffix": "", "strips_answer": False, "template_options": {}},
        {"strips_left": "", "strips_right": ""},
    ],
)
def test_contract_of_an_earlier_version_keeps_its_digest(tmp_path: Path, later_fields: dict[str, object]) -> None:
    path = tmp_path / "contract.json"
    path.write_text(json.dumps(OLD_CONTRACT | later_fields))
    contract = PromptContract.load(path)
    assert contract.digest == OLD_CONTRACT["digest"]
    assert dataclasses.replace(contract, strips_left="\n").digest != OLD_CONTRACT["digest"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "corrupted"),
        ("[]", "corrupted"),
        ("{}", "corrupted"),
        (json.dumps({"digest": "x"}), "corrupted: missing keys: bos_token_id, chat_template"),
        (json.dumps(OLD_CONTRACT | {"novelty": 1}), "a later version of instruct_ray; unknown keys: novelty"),
        (json.dumps(OLD_CONTRACT | {"contract_version": 2}), "contract version 2 is not supported; expected 1"),
    ],
)
def test_load_rejects_an_invalid_contract(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "contract.json").write_text(content)
    with pytest.raises(InputError, match=message):
        PromptContract.load(tmp_path / "contract.json")
    with pytest.raises(InputError, match="no contract here"):
        PromptContract.load(tmp_path / "elsewhere.json")


def test_strip_answer_removes_what_the_template_removes(renderer: Renderer) -> None:
    def strip(**values: object) -> str:
        return dataclasses.replace(renderer.contract, **values).strip_answer("\n \u3000a\u00a0 \n")

    assert strip() == "\n \u3000a\u00a0 \n"
    assert strip(strips_answer=True) == "a"
    assert strip(strips_left="\n") == " \u3000a\u00a0 \n"
    assert strip(strips_right="\n ") == "\n \u3000a\u00a0"
