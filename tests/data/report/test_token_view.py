"""Readable views of rows: all text, with targets and special tokens marked and invisible characters escaped."""

from pathlib import Path

import pytest

from instruct_ray.data.example import Example
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.report.token_view import TextSpan, TokenView, escape_invisible, make_token_views, text_spans


@pytest.fixture(scope="module")
def renderer(base_folder: Path) -> Renderer:
    return derive_renderer(base_folder, None)


def encode(renderer: Renderer, text: str) -> list[int]:
    return list(renderer.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_spans_split_the_text_by_kind_of_token(renderer: Renderer) -> None:
    prompt = encode(renderer, "<|im_start|>user\nHow bad is it? é 🙂<|im_end|>\n<|im_start|>assistant\n")
    [view] = make_token_views("0:7", [Example("0:7", prompt, encode(renderer, "High<|im_end|>"))])
    assert text_spans(view, renderer) == [
        TextSpan("<|im_start|>", is_special=True),
        TextSpan("user\nHow bad is it? é 🙂"),
        TextSpan("<|im_end|>", is_special=True),
        TextSpan("\n"),
        TextSpan("<|im_start|>", is_special=True),
        TextSpan("assistant\n"),
        TextSpan("High", is_target=True),
        TextSpan("<|im_end|>", is_target=True, is_special=True),
    ]


def test_a_clipped_view_keeps_both_ends(renderer: Renderer) -> None:
    ids = encode(renderer, "abc " * 100)
    view = TokenView("0:0", tuple(ids), (False,) * len(ids)).clip(20)
    first, gap, last = text_spans(view, renderer)
    assert len(view.token_ids) == 20
    assert gap == TextSpan(f" … {len(ids) - 20} more tokens … ", is_gap=True)
    assert ("abc " * 100).startswith(first.text) and ("abc " * 100).endswith(last.text)


def test_a_chat_is_one_view_with_all_answers_as_targets() -> None:
    turns = [Example("0:0/1", [1, 2], [3, 9]), Example("0:0/2", [1, 2, 3, 9, 4], [5, 9], 4)]
    [view] = make_token_views("0:0", turns)
    assert view.token_ids == (1, 2, 3, 9, 4, 5, 9)
    assert view.is_target == (False, False, True, True, False, True, True)


def test_turns_have_their_own_views_if_the_template_changes_the_history() -> None:
    turns = [Example("0:0/1", [1, 2], [3, 9]), Example("0:0/2", [1, 7, 4], [5, 9], 4)]
    assert [view.token_ids for view in make_token_views("0:0", turns)] == [(1, 2, 3, 9), (1, 7, 4, 5, 9)]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("user\u202egnp.exe", "user\\u202egnp.exe"),
        ("a\u200bb\x7f\r", "a\\u200bb\\x7f\\x0d"),
        ("line\n\ttab é 🙂 👩\u200d💻", "line\n\ttab é 🙂 👩\u200d💻"),
    ],
)
def test_invisible_and_control_characters_are_escaped(text: str, escaped: str) -> None:
    assert escape_invisible(text) == escaped
