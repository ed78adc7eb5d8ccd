"""Incremental detokenization: token ids -> parts of the decoded text, ended by stop strings, which are never sent.

The parts join to what decoding all tokens at once gives, also where the bytes are no UTF-8. So a part is sent only when
no later token can change it: an incomplete character waits for its other bytes, and a run of byte tokens (SentencePiece
byte fallback) waits for its end, because the decoder replaces all of its bytes if one of them is wrong.
"""

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# What a decoder writes for bytes that are no UTF-8, also for the first bytes of a character.
REPLACEMENT = "\ufffd"


class TextStream:
    """Decodes the tokens of one completion as they are generated."""

    def __init__(
        self, tokenizer: Tokenizer, stop_strings: Sequence[str], kept_ids: frozenset[int] = frozenset()
    ) -> None:
        """Begin a completion; `kept_ids` are special tokens that are decoded like others."""
        self._tokenizer, self._kept_ids = tokenizer, kept_ids
        self._stop_strings = stop_strings
        # Without the tokens that decoding skips.
        self._token_ids: list[int] = []
        # The tokens from here on are decoded at each step. The text of the first of them is final already: it is
        # decoded again because a token may lose the space before it where nothing stands before it.
        self._start = 0
        # Of the decoded tokens, the first ones, whose text is final; and that text.
        self._num_final_tokens = 0
        self._final_text = ""
        self._num_final_characters = 0
        self._pending = ""
        self.stopped = False
        """Whether a stop string ended the text."""

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is final now.

        The result is empty while a character or a stop string may be incomplete.
        """
        if self._is_skipped(token_id):
            return ""
        self._token_ids.append(token_id)
        self._pending += self._decode_final_text()
        if self._cut_at_stop_string():
            return self._take(len(self._pending))
        num_held = max((self._partial_match_length(stop) for stop in self._stop_strings), default=0)
        return self._take(len(self._pending) - num_held)

    def flush(self) -> str:
        """Return the pending text after the last token; sets `stopped` if a stop string ends it."""
        if not self.stopped:
            self._pending += self._decode(self._token_ids)[self._num_final_characters :]
            self._cut_at_stop_string()
        return self._take(len(self._pending))

    def _decode_final_text(self) -> str:
        """The text that became final with the last token."""
        tokens = self._token_ids[self._start :]
        text = self._decode(tokens)
        is_unfinished = text.endswith(REPLACEMENT) or self._is_byte(tokens[-1])
        if is_unfinished or not text.startswith(self._final_text):
            return ""
        new = text[len(self._final_text) :]
        self._num_final_characters += len(new)
        # The new tokens are what stands before the next ones, if they have a text of their own.
        own_text = self._decode(tokens[self._num_final_tokens :])
        if own_text:
            self._start += self._num_final_tokens
            self._num_final_tokens = len(self._token_ids) - self._start
            self._final_text = own_text
        else:
            self._num_final_tokens = len(tokens)
            self._final_text = text
        return new

    def _decode(self, token_ids: Sequence[int]) -> str:
        # Those that are skipped are not among the tokens.
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=not self._kept_ids)
        return text

    def _is_skipped(self, token_id: int) -> bool:
        """Whether decoding skips a token: it is special, or the model has more tokens than the tokenizer."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return True
        if token_id in self._kept_ids:
            return False
        is_empty = not self._tokenizer.decode([token_id], skip_special_tokens=True)
        return is_empty and bool(self._tokenizer.decode([token_id], skip_special_tokens=False))

    def _is_byte(self, token_id: int) -> bool:
        return BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token_id) or "") is not None

    def _cut_at_stop_string(self) -> bool:
        """Cut the pending text at the first stop string in it, and return whether there is one."""
        positions = [at for stop in self._stop_strings if (at := self._pending.find(stop)) >= 0]
        if positions:
            self.stopped = True
            self._pending = self._pending[: min(positions)]
        return self.stopped

    def _take(self, size: int) -> str:
        text, self._pending = self._pending[:size], self._pending[size:]
        return text

    def _partial_match_length(self, stop: str) -> int:
        """Length of the longest suffix of the pending text that is a prefix of a stop string."""
        max_length = min(len(stop) - 1, len(self._pending))
        return next((size for size in range(max_length, 0, -1) if self._pending.endswith(stop[:size])), 0)
