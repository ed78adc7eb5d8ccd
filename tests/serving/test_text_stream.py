"""Incremental detokenization: whole characters only, the text of all tokens, and stop strings are never sent."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from instruct_ray.serving.text_stream import TextStream
from tests.data.rendering.families import FAMILIES


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


@pytest.mark.parametrize("family", ["llama2", "llama2-first", "gemma", "mistral-v3", "qwen2.5", "prefix-bytes"])
def test_parts_of_any_tokens_join_to_the_text_of_all(family: str, tmp_path: Path) -> None:
    FAMILIES[family].save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    backend, rng = tokenizer.backend_tokenizer, random.Random(0)
    is_byte = [(backend.id_to_token(token_id) or "").startswith("<0x") for token_id in range(len(tokenizer))]
    byte_ids = [token_id for token_id, flag in enumerate(is_byte) if flag] or range(len(tokenizer))
    num_early = 0
    for _ in range(200):
        # Random tokens are rarely UTF-8. Ids past the vocabulary: embeddings are often padded.
        ids = [rng.choice(rng.choice([byte_ids, range(len(tokenizer) + 2)])) for _ in range(rng.randint(1, 12))]
        stream = TextStream(backend, [])
        parts = [stream.push(token_id) for token_id in ids]
        num_early += any(parts)
        assert "".join([*parts, stream.flush()]) == tokenizer.decode(ids, skip_special_tokens=True), ids
    assert num_early > 100, "the text is sent at the end only"


def test_stop_string_of_byte_tokens_ends_the_text(tmp_path: Path) -> None:
    FAMILIES["llama2"].save(tmp_path)
    backend = AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer
    newline, letter = backend.token_to_id("<0x0A>"), backend.token_to_id("<0x41>")
    stream = TextStream(backend, ["\n"])
    # The last token could be the first byte of a longer run, so its text is known at the end only.
    assert [stream.push(token_id) for token_id in (letter, newline)] == ["", ""]
    assert (stream.flush(), stream.stopped) == ("A", True)
