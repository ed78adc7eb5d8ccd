"""What a person is shown of a row: all of its text, what is trained, and nothing that hides or steers."""

from pathlib import Path

import pytest

from instruct_ray.data.inspection.display import Piece, View, legible, pieces, views
from instruct_ray.data.packing import Example
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.rendering.templates import make_renderer


@pytest.fixture(scope="module")
def renderer(base_folder: Path) -> Renderer:
    return make_renderer(base_folder, None)


def encode(renderer: Renderer, text: str) -> list[int]:
    return list(renderer.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_pieces_are_the_text_in_runs_of_one_kind(renderer: Renderer) -> None:
    prompt = encode(renderer, "<|im_start|>user\nHow bad is it? é 🙂<|im_end|>\n<|im_start|>assistant\n")
    [view] = views("0:7", [Example("0:7", prompt, encode(renderer, "High<|im_end|>"))])
    assert pieces(view, renderer) == [
        Piece("<|im_start|>", is_control=True),
        Piece("user\nHow bad is it? é 🙂"),
        Piece("<|im_end|>", is_control=True),
        Piece("\n"),
        Piece("<|im_start|>", is_control=True),
        Piece("assistant\n"),
        Piece("High", is_trained=True),
        Piece("<|im_end|>", is_trained=True, is_control=True),
    ]


def test_a_long_row_keeps_both_ends(renderer: Renderer) -> None:
    ids = encode(renderer, "abc " * 100)
    view = View("0:0", tuple(ids), (False,) * len(ids)).clipped(20)
    first, gap, last = pieces(view, renderer)
    assert len(view.token_ids) == 20
    assert gap == Piece(f" … {len(ids) - 20} more tokens … ", is_gap=True)
    assert ("abc " * 100).startswith(first.text) and ("abc " * 100).endswith(last.text)


def test_a_chat_is_one_view_in_which_all_answers_are_trained() -> None:
    turns = [Example("0:0/1", [1, 2], [3, 9]), Example("0:0/2", [1, 2, 3, 9, 4], [5, 9], 4)]
    [view] = views("0:0", turns)
    assert view.token_ids == (1, 2, 3, 9, 4, 5, 9)
    assert view.is_trained == (False, False, True, True, False, True, True)


def test_a_template_that_rewrites_history_gives_a_view_for_each_turn() -> None:
    turns = [Example("0:0/1", [1, 2], [3, 9]), Example("0:0/2", [1, 7, 4], [5, 9], 4)]
    assert [view.token_ids for view in views("0:0", turns)] == [(1, 2, 3, 9), (1, 7, 4, 5, 9)]


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
    assert legible(text) == shown
