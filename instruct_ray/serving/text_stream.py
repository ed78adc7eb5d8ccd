"""Incremental detokenization: token ids -> text in whole characters, ended by stop strings, which are never sent."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """Decodes the tokens of one completion as they are generated."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stop_strings = stop_strings
        self._pending = ""
        self.stopped = False
        """Whether a stop string ended the text."""

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is final now.

        The result is empty while a character or a stop string may be incomplete.
        """
        self._pending += self._decoder.step(self._tokenizer, token_id) or ""
        positions = [at for stop in self._stop_strings if (at := self._pending.find(stop)) >= 0]
        if positions:
            self.stopped = True
            text, self._pending = self._pending[: min(positions)], ""
            return text
        num_pending = max((self._partial_match_length(stop) for stop in self._stop_strings), default=0)
        end = len(self._pending) - num_pending
        text, self._pending = self._pending[:end], self._pending[end:]
        return text

    def flush(self) -> str:
        """Return the pending text after the last token."""
        text, self._pending = self._pending, ""
        return text

    def _partial_match_length(self, stop: str) -> int:
        """Length of the longest suffix of the pending text that is a prefix of a stop string."""
        max_length = min(len(stop) - 1, len(self._pending))
        return next((size for size in range(max_length, 0, -1) if self._pending.endswith(stop[:size])), 0)
