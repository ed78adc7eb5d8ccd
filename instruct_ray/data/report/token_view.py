"""Examples -> what a person can read: pieces of text, trained or not, control tokens and odd characters visible."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from instruct_ray.data.example import Example
from instruct_ray.data.rendering.renderer import Renderer


@dataclass(frozen=True)
class TokenView:
    """A row's tokens, and which of them are trained."""

    row_id: str
    token_ids: tuple[int, ...]
    is_trained: tuple[bool, ...]
    """One entry per token."""
    num_hidden: int = 0
    """Tokens left out of the middle."""
    hidden_at: int = 0

    def clipped(self, max_tokens: int) -> "TokenView":
        """The same with its middle left out, if it is longer than `max_tokens`."""
        num_hidden = len(self.token_ids) - max_tokens
        if num_hidden <= 0:
            return self
        head, tail = max_tokens // 2, max_tokens // 2 + num_hidden
        return replace(
            self,
            token_ids=self.token_ids[:head] + self.token_ids[tail:],
            is_trained=self.is_trained[:head] + self.is_trained[tail:],
            num_hidden=num_hidden,
            hidden_at=head,
        )


@dataclass(frozen=True)
class TextSpan:
    """A run of tokens of one kind as text."""

    text: str
    is_trained: bool = False
    is_control: bool = False
    is_gap: bool = False
    """Stands for tokens that are not shown."""


def make_token_views(row_id: str, examples: Sequence[Example]) -> list[TokenView]:
    """A row -> its views: one, unless the chat template rewrites what was said before, as it may in a chat."""
    found: list[tuple[list[int], list[bool]]] = []
    for example in examples:
        ids = [*map(int, example.prompt_ids), *map(int, example.completion_ids)]
        trained = [False] * len(example.prompt_ids) + [True] * len(example.completion_ids)
        if found and ids[: len(found[-1][0])] == found[-1][0]:
            earlier = found.pop()[1]
            trained[: len(earlier)] = earlier
        found.append((ids, trained))
    return [TokenView(row_id, tuple(ids), tuple(trained)) for ids, trained in found]


def text_spans(view: TokenView, renderer: Renderer) -> list[TextSpan]:
    """A view -> text in runs of one kind; texts joined are the view's text."""
    cut = view.hidden_at if view.num_hidden else len(view.token_ids)
    shown = decode_spans(view.token_ids[:cut], view.is_trained[:cut], renderer)
    if view.num_hidden:
        shown.append(TextSpan(f" … {view.num_hidden:,} more tokens … ", is_gap=True))
        shown += decode_spans(view.token_ids[cut:], view.is_trained[cut:], renderer)
    return shown


def decode_spans(
    token_ids: Sequence[int],
    is_trained: Sequence[bool],
    renderer: Renderer,
    before: Sequence[int] = (),
) -> list[TextSpan]:
    """Tokens that follow `before` -> text in runs of one kind."""
    control = frozenset(renderer.encoder.control_ids(list(token_ids)))
    kinds = [(trained, token in control) for token, trained in zip(token_ids, is_trained, strict=True)]
    found: list[TextSpan] = []
    shown, stop = _text(before, renderer), 0
    for (trained, is_control), run in groupby(kinds):
        start, stop = stop, stop + len(list(run))
        # Decoded with what stands in front: alone, some tokenizers lose the space that a text begins with.
        text = _text([*before, *token_ids[:stop]], renderer)
        own = text[len(shown) :] if text.startswith(shown) else _text(token_ids[start:stop], renderer)
        found.append(TextSpan(own, trained, is_control))
        shown = text
    return found


def escape_invisible(text: str) -> str:
    """The text with characters that are not seen, or that steer a terminal or the direction of writing, spelled out."""
    return "".join(_escape_character(character) for character in text)


def _escape_character(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp"):
        return character
    # Joins the parts of an emoji, and belongs to the writing of several languages.
    if character in "\u200d\u200c":
        return character
    return f"\\u{ord(character):04x}" if ord(character) > 0xFF else f"\\x{ord(character):02x}"


def _text(token_ids: Sequence[int], renderer: Renderer) -> str:
    ids = np.asarray(token_ids, np.int64).tolist()
    return str(renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
