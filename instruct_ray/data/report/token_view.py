"""Examples -> readable text, with target tokens, special tokens and invisible characters marked."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from instruct_ray.data.example import Example
from instruct_ray.data.rendering.renderer import Renderer


@dataclass(frozen=True)
class TokenView:
    """The tokens of a row, and which of them are target tokens."""

    row_id: str
    token_ids: tuple[int, ...]
    is_target: tuple[bool, ...]
    """One entry per token."""
    num_omitted: int = 0
    """Tokens omitted from the middle."""
    gap_index: int = 0
    """Index in `token_ids` at which they are omitted."""

    def clip(self, max_tokens: int) -> "TokenView":
        """Omit the middle if the view has more than `max_tokens` tokens."""
        num_omitted = len(self.token_ids) - max_tokens
        if num_omitted <= 0:
            return self
        head, tail = max_tokens // 2, max_tokens // 2 + num_omitted
        return replace(
            self,
            token_ids=self.token_ids[:head] + self.token_ids[tail:],
            is_target=self.is_target[:head] + self.is_target[tail:],
            num_omitted=num_omitted,
            gap_index=head,
        )


@dataclass(frozen=True)
class TextSpan:
    """The text of adjacent tokens of one kind."""

    text: str
    is_target: bool = False
    is_special: bool = False
    is_gap: bool = False
    """Replaces omitted tokens."""


def make_token_views(row_id: str, examples: Sequence[Example]) -> list[TokenView]:
    """Make the views of a row: one, unless the chat template renders earlier turns of a chat differently."""
    views: list[tuple[list[int], list[bool]]] = []
    for example in examples:
        ids = [*map(int, example.prompt_ids), *map(int, example.completion_ids)]
        is_target = [False] * len(example.prompt_ids) + [True] * len(example.completion_ids)
        if views and ids[: len(views[-1][0])] == views[-1][0]:
            _, earlier = views.pop()
            is_target[: len(earlier)] = earlier
        views.append((ids, is_target))
    return [TokenView(row_id, tuple(ids), tuple(is_target)) for ids, is_target in views]


def text_spans(view: TokenView, renderer: Renderer) -> list[TextSpan]:
    """Convert a view to spans of one kind each; their joined texts are the view's text."""
    if not view.num_omitted:
        return decode_spans(view.token_ids, view.is_target, renderer)
    gap = view.gap_index
    return [
        *decode_spans(view.token_ids[:gap], view.is_target[:gap], renderer),
        TextSpan(f" … {view.num_omitted:,} more tokens … ", is_gap=True),
        *decode_spans(view.token_ids[gap:], view.is_target[gap:], renderer),
    ]


def decode_spans(
    token_ids: Sequence[int],
    is_target: Sequence[bool],
    renderer: Renderer,
    before: Sequence[int] = (),
) -> list[TextSpan]:
    """Convert the tokens that follow `before` to spans of one kind each."""
    special_ids = frozenset(renderer.encoder.special_ids(list(token_ids)))
    kinds = [(target, token in special_ids) for token, target in zip(token_ids, is_target, strict=True)]
    spans: list[TextSpan] = []
    text_before, stop = _decode(before, renderer), 0
    for (target, special), same_kind in groupby(kinds):
        start, stop = stop, stop + len(list(same_kind))
        # Decoded with the tokens before it, since some tokenizers drop a leading space.
        text = _decode([*before, *token_ids[:stop]], renderer)
        is_extension = text.startswith(text_before)
        span_text = text[len(text_before) :] if is_extension else _decode(token_ids[start:stop], renderer)
        spans.append(TextSpan(span_text, is_target=target, is_special=special))
        text_before = text
    return spans


def escape_invisible(text: str) -> str:
    """Escape characters that are invisible, control a terminal, or change the writing direction."""
    return "".join(_escape_character(character) for character in text)


def _escape_character(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp"):
        return character
    # Joiners are part of emojis, and of the writing of several languages.
    if character in "\u200d\u200c":
        return character
    return f"\\u{ord(character):04x}" if ord(character) > 0xFF else f"\\x{ord(character):02x}"


def _decode(token_ids: Sequence[int], renderer: Renderer) -> str:
    ids = np.asarray(token_ids, np.int64).tolist()
    return str(renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
