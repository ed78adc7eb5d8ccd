"""The contract on the chat templates of the published families, and the templates that it refuses."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instruct_ray.data.example import Example
from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.rendering.derive_contract import DEFAULT_TEMPLATE, derive_renderer
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from tests.data.rendering.families import FAMILIES

ANSWERS = ["High", "12", "All of it, (yes)\nand more.", "é 日本", "<|im_end|> </s> [INST]", "Low."]
SYSTEM: Message = {"role": "system", "content": "Be brief."}
QUESTION: Message = {"role": "user", "content": "How bad is it?"}
THANKS: Message = {"role": "user", "content": "And 3?"}
# SentencePiece tokenizers whose decoder shows the space that they put in front of text, or a token that eats it.
INEXACT_TEXT = {"llama2", "mistral-v1", "mistral-v3", "bare-sentencepiece", "phi3", "prefix-bytes"}
# The system message moves to the last question, so that no whole chat begins with the prompt.
MOVES_SYSTEM = {"mistral-v3"}


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with the tokenizer of each family."""
    found: dict[str, Path] = {}
    for name, family in FAMILIES.items():
        found[name] = tmp_path_factory.mktemp(name)
        family.save(found[name])
    return found


@pytest.fixture
def renderer(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Renderer:
    name: str = request.param
    return derive_renderer(folders[name], None)


NAMES = list(FAMILIES)
each = pytest.mark.parametrize("name", NAMES)
each_renderer = pytest.mark.parametrize("renderer", NAMES, indirect=True)


def whole(renderer: Renderer, chat: list[Message]) -> list[int]:
    """A chat's tokens as transformers makes them, what users wrote kept apart."""
    encoding = renderer.tokenizer.apply_chat_template(
        chat,
        chat_template=renderer.contract.chat_template,
        sanitize_control_tokens=True,
        date_string="26 Jul 2024",
        **renderer.contract.template_options,
    )
    return list(encoding["input_ids"])


@each
@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("history", [[], [QUESTION, said("High")]], ids=["first turn", "second turn"])
def test_the_whole_chat_is_prompt_and_completion(
    name: str, system: str | None, history: list[Message], folders: dict[str, Path]
) -> None:
    if system and not FAMILIES[name].takes_system:
        with pytest.raises(InputError, match=r"refuses a chat of system, user: .*: leave data\.system_prompt out"):
            derive_renderer(folders[name], system)
        return
    renderer = derive_renderer(folders[name], system)
    messages = [*history, THANKS]
    chat = [SYSTEM, *messages] if system else messages
    for answer in ANSWERS:
        if "<|" in answer:
            continue
        joined = [*renderer.prompt(messages), *renderer.completion(answer)]
        if system and name in MOVES_SYSTEM:
            expected = whole(renderer, [*messages, said(answer)])
            assert len(joined) > len(expected)
            joined, expected = joined[-8:], expected[-8:]
        else:
            expected = whole(renderer, [*chat, said(answer)])
        assert joined == expected[: len(joined)]


@each_renderer
def test_the_stop_token_is_trained_once_at_the_end(renderer: Renderer, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["renderer"]
    stop = FAMILIES[name].stop
    contract = renderer.contract
    assert renderer.tokenizer.convert_ids_to_tokens(contract.stop_token_id) == stop
    for answer in [*ANSWERS, f"High{stop}", stop]:
        ids = renderer.completion(answer)
        assert ids[-1] == contract.stop_token_id and ids.count(contract.stop_token_id) == 1
    behind = whole(renderer, [QUESTION, said("High")])[len(renderer.prompt([QUESTION])) :]
    assert behind.count(contract.stop_token_id) == 1


@each_renderer
def test_others_render_the_exported_template_without_options(renderer: Renderer) -> None:
    encoding = renderer.tokenizer.apply_chat_template(
        [QUESTION],
        chat_template=renderer.contract.standalone_template,
        add_generation_prompt=True,
        date_string="26 Jul 2024",
    )
    assert renderer.prompt([QUESTION]) == encoding["input_ids"]


@each_renderer
def test_there_is_one_bos_token_at_most(renderer: Renderer, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["renderer"]
    bos = FAMILIES[name].bos
    ids = renderer.prompt([QUESTION])
    if bos is not None and name != "phi3":
        assert ids[0] == renderer.contract.bos_token_id and ids.count(ids[0]) == 1
    if bos is not None:
        assert renderer.contract.bos_token_id not in renderer.completion("High")


@each_renderer
def test_the_tokens_are_the_template_s_text(renderer: Renderer, request: pytest.FixtureRequest) -> None:
    chat = [QUESTION, said("High"), THANKS]
    for answer in ANSWERS:
        text = renderer.template.render([*chat, said(answer)], add_generation_prompt=False)
        decoded = renderer.tokenizer.decode([*renderer.prompt(chat), *renderer.completion(answer)])
        if request.node.callspec.params["renderer"] in INEXACT_TEXT:
            text, decoded = text.replace(" ", "").replace("\n", ""), decoded.replace(" ", "").replace("\n", "")
        assert text.startswith(decoded)


@each_renderer
def test_white_space_around_an_answer_is_what_the_template_makes_of_it(renderer: Renderer) -> None:
    prompt = renderer.template.render([QUESTION], add_generation_prompt=True)
    stop = renderer.tokenizer.convert_ids_to_tokens(renderer.contract.stop_token_id)
    contract = renderer.contract
    if contract.strips_left and contract.strips_left != "\n":
        pytest.skip("here a token takes the white space, not the template")

    @settings(deadline=None, max_examples=25)
    @given(*[st.text(" \n\t\r\u00a0\u3000", max_size=3)] * 2)
    def check(left: str, right: str) -> None:
        answer = f"{left}High{right}"
        text = renderer.template.render([QUESTION, said(answer)], add_generation_prompt=False)
        written = contract.answer_prefix + contract.stripped(answer) + contract.answer_suffix
        assert text.removeprefix(prompt).startswith(written + stop)
        plain = [*renderer.encoder.behind([written], renderer.encoder.plain)[0], contract.stop_token_id]
        assert len(renderer.completion(answer)) <= len(plain) + 1

    check()


def test_sentencepiece_puts_no_space_in_front_of_an_answer(folders: dict[str, Path]) -> None:
    pieces = {
        name: renderer.tokenizer.convert_ids_to_tokens(renderer.completion("High")[:1])
        for name in ("llama2", "llama2-first", "mistral-v1", "gemma", "bare-sentencepiece")
        for renderer in [derive_renderer(folders[name], None)]
    }
    with_space = {name for name, [piece] in pieces.items() if piece.startswith("▁")}
    assert with_space == {"llama2", "llama2-first"}, "their template writes one"


def test_white_space_that_a_token_takes_is_no_part_of_an_answer(folders: dict[str, Path]) -> None:
    renderer = derive_renderer(folders["phi3"], None)
    chat = whole(renderer, [QUESTION, said(" \nHigh \n")])
    joined = [*renderer.prompt([QUESTION]), *renderer.completion(" \nHigh \n")]
    assert joined == chat[: len(joined)]


def test_qwen3_is_asked_without_thoughts_and_trained_without(folders: dict[str, Path]) -> None:
    renderer = derive_renderer(folders["qwen3"], None)
    assert renderer.contract.template_options == {"enable_thinking": False}
    think = renderer.tokenizer.convert_tokens_to_ids("<think>")
    row = Triple("row", "And now?", "", "Low", history=(("One?", "<think>\nHm.\n</think>\n\nHigh"), ("Two?", "Low")))
    [examples] = renderer.examples(["row"], [row])
    assert isinstance(examples, list)
    chat = renderer.chat(row)
    for index, example in enumerate(examples):
        assert isinstance(example, Example)
        served = renderer.tokenizer.apply_chat_template(
            chat[: 2 * index + 1], add_generation_prompt=True, enable_thinking=False, sanitize_control_tokens=True
        )
        assert example.prompt_ids == served["input_ids"]
        assert renderer.tokenizer.decode(example.prompt_ids).endswith("assistant\n<think>\n\n</think>\n\n")
        assert list(example.prompt_ids).count(think) == 1 and think not in example.completion_ids
    assert "Hm." not in renderer.tokenizer.decode(examples[1].prompt_ids), "old thoughts are dropped"
    assert renderer.contract.strips_left == "\n" and renderer.completion("\n\nHigh") == renderer.completion("High")


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(folders: dict[str, Path]) -> None:
    renderer = derive_renderer(folders["llama3.2"], None)
    assert "Today Date: 26 Jul 2024" in renderer.tokenizer.decode(renderer.prompt([QUESTION]))


@pytest.mark.parametrize("name", ["bare-bytes", "bare-sentencepiece"])
def test_a_base_without_a_template_gets_the_default_one(name: str, folders: dict[str, Path]) -> None:
    contract = derive_renderer(folders[name], None).contract
    assert contract.chat_template == DEFAULT_TEMPLATE
    assert derive_renderer(folders[name], None).contract.digest == contract.digest
