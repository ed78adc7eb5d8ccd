"""Encodes text as token ids, and keeps special tokens and text from users apart.

A *special token* is, throughout this project, a token that only the chat template may write: one of the tokenizer's
special tokens, or another added token that the template uses (`ChatTemplate.special_tokens`). transformers calls these
control tokens. Text from users never becomes one: what looks like a special token is encoded as ordinary text.
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

# Markers around special tokens in text from users, while the template is rendered. transformers uses the same ones.
OPEN, CLOSE = "\U000f0000", "\U000f0001"
# Put before a text so that it is not the start of the input. The next prefix is used where one merges with the text.
_CONTEXT_PREFIXES = ("\n", "x", "!")

Encode = Callable[[list[str]], list[list[int]]]


class Encoder:
    """Encodes texts in two modes: special tokens in them are encoded as such, or as ordinary text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_tokens: Sequence[str]) -> None:
        """Create an encoder.

        Args:
            tokenizer: A fast tokenizer.
            special_tokens: Contents of the added tokens that text from users must never become.
        """
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._text_backend = _make_text_backend(tokenizer, tuple(special_tokens))
        self._special_ids = frozenset(self._backend.token_to_id(token) for token in special_tokens)
        self._unknown_id = tokenizer.unk_token_id
        longest_first = sorted(special_tokens, key=len, reverse=True)
        special = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._special_pattern = re.compile(special)
        self._special_or_marker_pattern = re.compile(f"{special}|[{OPEN}{CLOSE}]")
        self._escaped_pattern = re.compile(f"{OPEN}({special}){CLOSE}|[{OPEN}{CLOSE}]")
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        self._added = {content: added[content] for content in special_tokens}
        # Set where normalization can turn other characters into a special token.
        self._normalizer = self._backend.normalizer if any(token.normalized for token in self._added.values()) else None
        self._edge_characters = str.maketrans(
            {edge: OPEN for token in special_tokens for edge in (token[0], token[-1])}
        )

    def encode_with_special(self, texts: list[str]) -> list[list[int]]:
        """Encode texts; special tokens in them are encoded as such."""
        return _encode(self._backend, texts, special_as_text=False)

    def encode_as_text(self, texts: list[str]) -> list[list[int]]:
        """Encode texts; special tokens in them are encoded as ordinary text."""
        return _encode(self._text_backend, texts, special_as_text=True)

    def encode_after_text(self, texts: list[str], encode: Encode) -> list[list[int]]:
        """Encode texts that follow other text.

        SentencePiece tokenizers put a space before the first text of an input. These texts get no such space.

        Args:
            texts: The texts; every text is encoded separately.
            encode: `encode_with_special` or `encode_as_text`.
        """
        if not self._prepends_space:
            return encode(texts)
        encoded: dict[int, list[int]] = {}
        for prefix in _CONTEXT_PREFIXES:
            remaining = [index for index in range(len(texts)) if index not in encoded]
            [prefix_ids] = encode([prefix])
            size = len(prefix_ids)
            for index, ids in zip(remaining, encode([prefix + texts[index] for index in remaining]), strict=True):
                if ids[:size] == prefix_ids:
                    encoded[index] = ids[size:]
        return [encoded[index] if index in encoded else encode([text])[0] for index, text in enumerate(texts)]

    def encode_after_special(self, texts: list[str], encode: Encode) -> list[list[int]]:
        """Encode texts that directly follow a special token, where some tokenizers put a space as well."""
        return encode(texts) if self._prepends_space_after_special else self.encode_after_text(texts, encode)

    def prefix_through_last_special(self, text: str) -> str:
        """Return the text up to and including its last special token.

        It is empty without one, or if what follows that token can't be encoded on its own.
        """
        matches = list(self._special_pattern.finditer(text))
        if not matches or self._is_context_dependent(matches[-1][0]) or self._added[matches[-1][0]].rstrip:
            return ""
        return text[: matches[-1].end()]

    def suffix_from_first_special(self, text: str) -> str:
        """Return the text from its first special token on.

        It is empty without one, or if what precedes that token can't be encoded on its own.
        """
        match = self._special_pattern.search(text)
        if not match or self._is_context_dependent(match[0]) or self._added[match[0]].lstrip:
            return ""
        return text[match.start() :]

    def may_contain_special(self, text: str) -> bool:
        """Whether the text contains a special token or one of the markers of `escape_special`."""
        return self._special_or_marker_pattern.search(text) is not None

    def escape_special(self, text: str) -> str:
        """Put markers around the special tokens in text from a user, and remove markers that it already has."""
        return self._special_pattern.sub(f"{OPEN}\\g<0>{CLOSE}", text.replace(OPEN, "").replace(CLOSE, ""))

    def encode_escaped(self, text: str, encode_first: Encode | None = None) -> list[int]:
        """Encode a chat rendered from escaped texts: special tokens between markers are encoded as ordinary text.

        A marker whose partner the template removed still separates the texts on its sides.

        Args:
            text: The chat.
            encode_first: Encodes what is before the first marker, if the text is not the start of the input.
        """
        first, *pieces = self._escaped_pattern.split(text)
        [ids] = (encode_first or self.encode_with_special)([first])
        # Pieces alternate: the escaped special token (None for a lone marker), then the text up to the next marker.
        for index, piece in enumerate(pieces):
            if piece:
                ids += self.encode_after_text([piece], self.encode_with_special if index % 2 else self.encode_as_text)[
                    0
                ]
        return ids

    def replace_special_characters(self, text: str) -> str:
        """Replace the characters that special tokens begin or end with, so that the text can't become one."""
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        return text.translate(self._edge_characters)

    def special_ids(self, ids: list[int]) -> list[int]:
        """Return the special tokens among the tokens, in order."""
        known = self._special_ids
        return [] if known.isdisjoint(ids) else [token_id for token_id in ids if token_id in known]

    def unknown_characters(self, text: str) -> list[str]:
        """List the characters of a text that the tokenizer has no token for."""
        [ids] = self.encode_as_text([text])
        if self._unknown_id is None or self._unknown_id not in ids:
            return []
        characters = list(dict.fromkeys(text))
        encoded = self.encode_as_text(characters)
        return [char for char, ids in zip(characters, encoded, strict=True) if self._unknown_id in ids]

    def _is_context_dependent(self, token: str) -> bool:
        """Whether the text around the token decides if the tokenizer recognizes it."""
        added = self._added[token]
        return bool(added.single_word or (added.normalized and self._normalizer is not None))

    @cached_property
    def _prepends_space(self) -> bool:
        """Whether the tokenizer puts a space before the first text of an input."""
        alone, newline, after_newline = self.encode_as_text(["A", "\n", "\nA"])
        return after_newline[: len(newline)] == newline and after_newline[len(newline) :] != alone

    @cached_property
    def _prepends_space_after_special(self) -> bool:
        """Whether the tokenizer puts a space before each text between special tokens, not only before the first."""
        token = next((token for token in self._added if not self._added[token].rstrip), None)
        if token is None:
            return False
        [alone] = self.encode_as_text(["A"])
        [after_special] = self.encode_with_special([token + "A"])
        return after_special == [self._backend.token_to_id(token), *alone]


def decode_answer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], kept_ids: frozenset[int]) -> str:
    """Decode the tokens of an answer without its special tokens, apart from some that are kept."""
    if not kept_ids.isdisjoint(ids):
        skipped = set(tokenizer.all_special_ids) - kept_ids
        ids = [token_id for token_id in ids if token_id not in skipped]
    is_skipping = kept_ids.isdisjoint(ids)
    return str(tokenizer.decode(ids, skip_special_tokens=is_skipping, clean_up_tokenization_spaces=False))


def _encode(backend: Tokenizer, texts: list[str], *, special_as_text: bool) -> list[list[int]]:
    # Settings that the last user of the tokenizer may have left.
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = special_as_text
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


@lru_cache(maxsize=4)
def _make_text_backend(tokenizer: PreTrainedTokenizerBase, special_tokens: tuple[str, ...]) -> Tokenizer:
    """Return a backend that can encode all special tokens as text.

    `Tokenizer.encode_special_tokens` applies only to tokens with the special flag, so a copy sets it for the others.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer
    added = tokenizer.added_tokens_decoder.values()
    unflagged = [token for token in added if token.content in special_tokens and not token.special]
    if not unflagged:
        return backend
    copy = Tokenizer.from_str(backend.to_str())
    copy.add_special_tokens(
        [
            AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
            )
            for token in unflagged
        ]
    )
    return copy
