"""Incremental detokenization: whole characters only, and stop strings are never sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from instruct_ray.serving.text_stream import TextStream


def stream_text(tokenizer: PreTrainedTokenizerFast, text: str, stop_strings: list[str]) -> tuple[list[str], bool]:
    """Push the tokens of a text; returns the streamed parts, and whether a stop string ended the text."""
    stream = TextStream(tokenizer.backend_tokenizer, stop_strings)
    parts = []
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        parts.append(stream.push(token_id))
        if stream.stopped:
            return parts, True
    return [*parts, stream.flush()], False


@given(text=st.text(alphabet="aé漢🙂 \nx", max_size=20))
def test_streamed_parts_join_to_the_text_and_never_split_a_character(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    parts, _ = stream_text(tokenizer, text, [])
    assert "".join(parts) == text
    assert all("�" not in part for part in parts)


@pytest.mark.parametrize(
    ("text", "stop_strings", "expected"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("one ST two", ["STOP"], "one ST two"),
        ("a\n\nb", ["\n\n"], "a"),
        ("abc", ["c", "bc"], "a"),
        ("abab", ["abb"], "abab"),
    ],
)
def test_stop_strings_end_the_text_and_are_not_sent(
    tokenizer: PreTrainedTokenizerFast, text: str, stop_strings: list[str], expected: str
) -> None:
    parts, stopped = stream_text(tokenizer, text, stop_strings)
    assert "".join(parts) == expected
    assert stopped == (expected != text)
