"""Contracts derived from the chat templates of published families agree with transformers."""

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
from tests.data.rendering.families import FAMILIES, assistant, encode_with_transformers

ANSWERS = ["High", "12", "All of it, (yes)\nand more.", "é 日本", "<|im_end|> </s> [INST]", "Low."]
SYSTEM: Message = {"role": "system", "content": "Be brief."}
QUESTION: Message = {"role": "user", "content": "How bad is it?"}
FOLLOW_UP: Message = {"role": "user", "content": "And 3?"}
# SentencePiece tokenizers that decode the space they put before text, and tokens that absorb white space.
INEXACT_DECODING = {"llama2", "mistral-v1", "mistral-v3", "bare-sentencepiece", "phi3", "prefix-bytes"}
# The template moves the system message to the last question, so no chat with an answer begins with the prompt.
MOVES_SYSTEM = {"mistral-v3"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with the tokenizer of each family."""
    folders: dict[str, Path] = {}
    for name, family in FAMILIES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        family.save(folders[name])
    return folders


@pytest.fixture
def renderer(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Renderer:
    name: str = request.param
    return derive_renderer(folders[name], None)


NAMES = list(FAMILIES)
all_names = pytest.mark.parametrize("name", NAMES)
all_renderers = pytest.mark.parametrize("renderer", NAMES, indirect=True)


def encode_chat(renderer: Renderer, chat: list[Message]) -> list[int]:
    """Encode a chat that ends with an answer, as transformers does."""
    return encode_with_transformers(renderer, chat, add_generation_prompt=False)


@all_names
@pytest.mark.parametrize("system_prompt", [None, "Be brief."])
@pytest.mark.parametrize("history", [[], [QUESTION, assistant("High")]], ids=["first turn", "second turn"])
def test_chat_tokens_begin_with_prompt_and_completion(
    name: str, system_prompt: str | None, history: list[Message], folders: dict[str, Path]
) -> None:
    if system_prompt and not FAMILIES[name].supports_system:
        with pytest.raises(InputError, match=r"rejects a chat of system, user: .*; remove data\.system_prompt"):
            derive_renderer(folders[name], system_prompt)
        return
    renderer = derive_renderer(folders[name], system_prompt)
    messages = [*history, FOLLOW_UP]
    chat = [SYSTEM, *messages] if system_prompt else messages
    for answer in ANSWERS:
        if "<|" in answer:
            continue
        joined = [*renderer.prompt(messages), *renderer.completion(answer)]
        if system_prompt and name in MOVES_SYSTEM:
            expected = encode_chat(renderer, [*messages, assistant(answer)])
            assert len(joined) > len(expected)
            joined, expected = joined[-8:], expected[-8:]
        else:
            expected = encode_chat(renderer, [*chat, assistant(answer)])
        assert joined == expected[: len(joined)]


@all_renderers
def test_completion_ends_with_its_only_stop_token(renderer: Renderer, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["renderer"]
    stop = FAMILIES[name].stop
    contract = renderer.contract
    assert renderer.tokenizer.convert_ids_to_tokens(contract.stop_token_id) == stop
    for answer in [*ANSWERS, f"High{stop}", stop]:
        ids = renderer.completion(answer)
        assert ids[-1] == contract.stop_token_id and ids.count(contract.stop_token_id) == 1
    after_prompt = encode_chat(renderer, [QUESTION, assistant("High")])[len(renderer.prompt([QUESTION])) :]
    assert after_prompt.count(contract.stop_token_id) == 1


@all_renderers
def test_standalone_template_renders_the_prompt_without_options(renderer: Renderer) -> None:
    encoding = renderer.tokenizer.apply_chat_template(
        [QUESTION],
        chat_template=renderer.contract.standalone_template,
        add_generation_prompt=True,
        date_string="26 Jul 2024",
    )
    assert renderer.prompt([QUESTION]) == encoding["input_ids"]


@all_renderers
def test_prompt_has_at_most_one_bos_token(renderer: Renderer, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["renderer"]
    bos = FAMILIES[name].bos
    ids = renderer.prompt([QUESTION])
    if bos is not None and name != "phi3":
        assert ids[0] == renderer.contract.bos_token_id and ids.count(ids[0]) == 1
    if bos is not None:
        assert renderer.contract.bos_token_id not in renderer.completion("High")


@all_renderers
def test_decoded_tokens_are_the_text_of_the_template(renderer: Renderer, request: pytest.FixtureRequest) -> None:
    chat = [QUESTION, assistant("High"), FOLLOW_UP]
    for answer in ANSWERS:
        text = renderer.template.render([*chat, assistant(answer)], add_generation_prompt=False)
        decoded = renderer.tokenizer.decode([*renderer.prompt(chat), *renderer.completion(answer)])
        if request.node.callspec.params["renderer"] in INEXACT_DECODING:
            text, decoded = text.replace(" ", "").replace("\n", ""), decoded.replace(" ", "").replace("\n", "")
        assert text.startswith(decoded)


@all_renderers
def test_contract_strips_white_space_around_an_answer_like_the_template(renderer: Renderer) -> None:
    prompt = renderer.template.render([QUESTION], add_generation_prompt=True)
    stop = renderer.tokenizer.convert_ids_to_tokens(renderer.contract.stop_token_id)
    contract, encoder = renderer.contract, renderer.encoder
    if contract.strips_left and contract.strips_left != "\n":
        pytest.skip("here an added token absorbs the white space, not the template")

    @settings(deadline=None, max_examples=25)
    @given(*[st.text(" \n\t\r\u00a0\u3000", max_size=3)] * 2)
    def check(left: str, right: str) -> None:
        answer = f"{left}High{right}"
        text = renderer.template.render([QUESTION, assistant(answer)], add_generation_prompt=False)
        written = contract.answer_prefix + contract.strip_answer(answer) + contract.answer_suffix
        assert text.removeprefix(prompt).startswith(written + stop)
        expected = [*encoder.encode_after_text([written], encoder.encode_as_text)[0], contract.stop_token_id]
        assert len(renderer.completion(answer)) <= len(expected) + 1

    check()


def test_sentencepiece_puts_no_space_before_an_answer(folders: dict[str, Path]) -> None:
    first_pieces = {
        name: renderer.tokenizer.convert_ids_to_tokens(renderer.completion("High")[:1])
        for name in ("llama2", "llama2-first", "mistral-v1", "gemma", "bare-sentencepiece")
        for renderer in [derive_renderer(folders[name], None)]
    }
    with_space = {name for name, [piece] in first_pieces.items() if piece.startswith("▁")}
    assert with_space == {"llama2", "llama2-first"}, "their template writes one"


def test_white_space_that_a_token_absorbs_is_stripped_from_an_answer(folders: dict[str, Path]) -> None:
    renderer = derive_renderer(folders["phi3"], None)
    chat_ids = encode_chat(renderer, [QUESTION, assistant(" \nHigh \n")])
    joined = [*renderer.prompt([QUESTION]), *renderer.completion(" \nHigh \n")]
    assert joined == chat_ids[: len(joined)]


def test_qwen3_is_prompted_and_trained_without_thinking(folders: dict[str, Path]) -> None:
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
    assert "Hm." not in renderer.tokenizer.decode(examples[1].prompt_ids), "thinking of earlier turns is removed"
    assert renderer.contract.strips_left == "\n" and renderer.completion("\n\nHigh") == renderer.completion("High")


def test_template_that_writes_the_date_writes_a_fixed_one(folders: dict[str, Path]) -> None:
    renderer = derive_renderer(folders["llama3.2"], None)
    assert "Today Date: 26 Jul 2024" in renderer.tokenizer.decode(renderer.prompt([QUESTION]))


@pytest.mark.parametrize("name", ["bare-bytes", "bare-sentencepiece"])
def test_base_model_without_a_template_gets_the_default(name: str, folders: dict[str, Path]) -> None:
    contract = derive_renderer(folders[name], None).contract
    assert contract.chat_template == DEFAULT_TEMPLATE
    assert derive_renderer(folders[name], None).contract.digest == contract.digest
