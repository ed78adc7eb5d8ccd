"""Streams of text: no broken characters, no stop strings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from instruct_ray.serving.text_stream import TextStream


def stream(tokenizer: PreTrainedTokenizerFast, text: str, stops: list[str]) -> tuple[list[str], bool]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = TextStream(tokenizer.backend_tokenizer, stops)
    found = []
    for token in ids:
        found.append(pieces.push(token))
        if pieces.stopped:
            return found, True
    return [*found, pieces.flush()], False


@given(text=st.text(alphabet="aé漢🙂 \nx", max_size=20))
def test_pieces_join_to_the_text_and_hold_whole_characters(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    pieces, _ = stream(tokenizer, text, [])
    assert "".join(pieces) == text
    assert all("�" not in piece for piece in pieces)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("one ST two", ["STOP"], "one ST two"),
        ("a\n\nb", ["\n\n"], "a"),
        ("abc", ["c", "bc"], "a"),
        ("abab", ["abb"], "abab"),
    ],
)
def test_stop_strings_end_the_text_and_are_not_sent(
    tokenizer: PreTrainedTokenizerFast, text: str, stops: list[str], expected: str
) -> None:
    pieces, stopped = stream(tokenizer, text, stops)
    assert "".join(pieces) == expected
    assert stopped == (expected != text)
