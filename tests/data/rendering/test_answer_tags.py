"""Tags that the chat template owns, such as <think>, are no text of answers; characters without a token are named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple
from tests.data.rendering.families import FAMILIES, byte_level, make_renderer, make_word_renderer, special

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nOPENED{% endif %}"
)
EMPTY = "<think>\\n\\n</think>\\n\\n"


@pytest.fixture
def make_chatml(tmp_path: Path) -> Callable[..., Renderer]:
    """Makes a renderer whose ChatML template writes `content`, and no token but those of turns."""

    def make(content: str) -> Renderer:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=byte_level(special("<|im_start|>", "<|im_end|>")), eos_token="<|im_end|>"
        )
        tokenizer.chat_template = CHATML.replace("CONTENT", content).replace("OPENED", "")
        tokenizer.save_pretrained(tmp_path)
        return derive_renderer(tmp_path, None)

    return make


def find_tag(renderer: Renderer, triple: Triple) -> str | None:
    """The tag that a row is rejected for, None if it is not."""
    try:
        renderer.answer_tags.clean(triple)
    except RowError as error:
        assert error.reason == "template_tag"
        return error.detail.split(" ")[1]
    return None


@pytest.mark.parametrize(
    ("answer", "tag"),
    [
        ("<think>\nHm.\n</think>\n\nHigh", "<think>"),
        ("Hm.</think>High", "</think>"),
        ("High <think>", "<think>"),
        ("<tool_call>\n{}\n</tool_call>", "<tool_call>"),
        ("</tool_response>", "</tool_response>"),
        ("<b>High</b> <|im_end|> < think >", None),
    ],
)
def test_tags_that_are_tokens_of_the_template_are_rejected_in_answers(
    tmp_path: Path, answer: str, tag: str | None
) -> None:
    renderer = make_renderer(FAMILIES["qwen3"], tmp_path)
    assert find_tag(renderer, Triple("a", "q", "", answer)) == tag
    assert find_tag(renderer, Triple("a", "q", "", "High", history=(("q", answer),))) == tag
    # What is not trained on may have them: the template decides what becomes of earlier turns.
    assert find_tag(renderer, Triple("a", "q", "", "High", history=(("q", answer),), untrained_turns=(0,))) is None
    assert find_tag(renderer, Triple("a", answer, answer, "High")) is None


def test_empty_thinking_block_before_an_answer_is_the_template_s(tmp_path: Path) -> None:
    renderer = make_renderer(FAMILIES["qwen3"], tmp_path)
    row = Triple("a", "q", "", "<think>\n\n</think>\n\nHigh", history=(("p", "<think></think>Low"),))
    assert renderer.answer_tags.clean(row) == Triple("a", "q", "", "High", history=(("p", "Low"),))


def test_tags_that_the_template_changes_are_rejected_without_tokens_for_them(
    make_chatml: Callable[..., Renderer],
) -> None:
    strips = make_chatml("m.content.split('</thought>')[-1] if '<thought>' in m.content else m.content")
    assert find_tag(strips, Triple("a", "q", "", "<thought>Hm.</thought>High")) == "<thought>"
    keeps = make_chatml("m['content'] if m.role != 'tool' else '<result>' + m.content + '</result>'")
    row = Triple("a", "q", "", "<result>High</result>")
    assert find_tag(keeps, row) is None and keeps.answer_tags.clean(row) is row


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("qwen3", "qwen2.5", "smollm2")])
def test_other_families_own_no_tags(name: str, tmp_path: Path) -> None:
    renderer = make_renderer(FAMILIES[name], tmp_path)
    row = Triple("a", "q", "", "<think>a</think> [INST] b [/INST] <tool_call>c</tool_call>")
    assert renderer.answer_tags.clean(row) is row


def test_characters_that_the_tokenizer_does_not_know_are_named(tmp_path: Path) -> None:
    renderer = make_word_renderer(tmp_path)
    rows = [Triple("a", "Rate", "hi", "High"), Triple("b", "Rate 服务", "", "High"), Triple("c", "Rate", "", "Höh")]
    fits, prompt, answer = renderer.examples(["a", "b", "c"], rows)
    assert isinstance(fits, list)
    for error, text in ((prompt, "'服', '务'"), (answer, "'ö'")):
        assert isinstance(error, RowError) and error.reason == "unknown_characters"
        assert error.detail == f"has characters that the tokenizer does not know: {text}"
    # In a chat of several turns, too, where the template writes special tokens between them.
    chat = Triple("e", "And now?", "", "High", history=(("Rate 服务", "Low"),))
    [error] = renderer.examples(["e"], [chat])
    assert isinstance(error, RowError) and error.detail.endswith("'服', '务'")
    [fits] = renderer.examples(["f"], [replace(chat, history=(("Rate it", "Low"),))])
    assert isinstance(fits, list)
    [many] = renderer.examples(["d"], [Triple("d", "αβγδεζη", "", "High")])
    assert isinstance(many, RowError) and many.detail.endswith("'α', 'β', 'γ', 'δ', 'ε' and 2 more")
