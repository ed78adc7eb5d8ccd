"""BM25 over texts of any script, by bm25s. Pure."""

from collections.abc import Sequence

import bm25s
import numpy as np

from instruct_ray.evidence.scoring.free_text import WordTokenizer


class Bm25Index:
    """Texts ranked by BM25 (Lucene's variant)."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._tokenizer = WordTokenizer()
        self._num_texts = len(texts)
        self._index = bm25s.BM25()
        tokens = [self._tokenizer.tokenize(text) for text in texts]
        self._has_words = any(tokens)
        if self._has_words:
            self._index.index(tokens, show_progress=False)

    def find_best(self, query: str, count: int) -> list[int]:
        """The indices of the texts with the highest scores, best first; the earlier one of equals."""
        words = self._tokenizer.tokenize(query)
        # Without any word, all texts score the same.
        if not words or not self._has_words:
            return list(range(min(count, self._num_texts)))
        scores = self._index.get_scores(words)
        return [int(index) for index in np.argsort(-scores, kind="stable")[:count]]
