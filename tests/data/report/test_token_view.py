"""What a person is shown of a row: all of its text, what is trained, and nothing that hides or steers."""

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


def test_pieces_are_the_text_in_runs_of_one_kind(renderer: Renderer) -> None:
    prompt = encode(renderer, "<|im_start|>user\nHow bad is it? é 🙂<|im_end|>\n<|im_start|>assistant\n")
    [view] = make_token_views("0:7", [Example("0:7", prompt, encode(renderer, "High<|im_end|>"))])
    assert text_spans(view, renderer) == [
        TextSpan("<|im_start|>", is_control=True),
        TextSpan("user\nHow bad is it? é 🙂"),
        TextSpan("<|im_end|>", is_control=True),
        TextSpan("\n"),
        TextSpan("<|im_start|>", is_control=True),
        TextSpan("assistant\n"),
        TextSpan("High", is_trained=True),
        TextSpan("<|im_end|>", is_trained=True, is_control=True),
    ]


def test_a_long_row_keeps_both_ends(renderer: Renderer) -> None:
    ids = encode(renderer, "abc " * 100)
    view = TokenView("0:0", tuple(ids), (False,) * len(ids)).clipped(20)
    first, gap, last = text_spans(view, renderer)
    assert len(view.token_ids) == 20
    assert gap == TextSpan(f" … {len(ids) - 20} more tokens … ", is_gap=True)
    assert ("abc " * 100).startswith(first.text) and ("abc " * 100).endswith(last.text)


def test_a_chat_is_one_view_in_which_all_answers_are_trained() -> None:
    turns = [Example("0:0/1", [1, 2], [3, 9]), Example("0:0/2", [1, 2, 3, 9, 4], [5, 9], 4)]
    [view] = make_token_views("0:0", turns)
    assert view.token_ids == (1, 2, 3, 9, 4, 5, 9)
    assert view.is_trained == (False, False, True, True, False, True, True)


def test_a_template_that_rewrites_history_gives_a_view_for_each_turn() -> None:
    turns = [Example("0:0/1", [1, 2], [3, 9]), Example("0:0/2", [1, 7, 4], [5, 9], 4)]
    assert [view.token_ids for view in make_token_views("0:0", turns)] == [(1, 2, 3, 9), (1, 7, 4, 5, 9)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("user\u202egnp.exe", "user\\u202egnp.exe"),
        ("a\u200bb\x7f\r", "a\\u200bb\\x7f\\x0d"),
        ("line\n\ttab é 🙂 👩\u200d💻", "line\n\ttab é 🙂 👩\u200d💻"),
    ],
)
def test_what_steers_a_terminal_or_hides_is_spelled_out(text: str, shown: str) -> None:
    assert escape_invisible(text) == shown
