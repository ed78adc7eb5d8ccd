"""Near duplicates of held-out rows: MinHash over pieces of text, found by locality-sensitive hashing.

Broder, "On the resemblance and containment of documents" (1997); the index is datasketch's.
"""

import zlib
from collections.abc import Iterable

from datasketch import MinHash, MinHashLSH

NUM_PERMUTATIONS = 128
PIECE_CHARACTERS = 5
# Signatures are copies of one that has drawn its permutations, and hash with crc32: a third of datasketch's own cost.
BLANK = MinHash(NUM_PERMUTATIONS, hashfunc=zlib.crc32)


class HeldOut:
    """The held-out texts, to be asked whether another one resembles any of them."""

    def __init__(self, texts: Iterable[str], similarity: float) -> None:
        self._similarity = similarity
        self._signatures: dict[int, MinHash] = {}
        # Candidates are compared afterwards, so one too many costs time, and one too few a leak.
        self._index = MinHashLSH(threshold=similarity, num_perm=NUM_PERMUTATIONS, weights=(0.1, 0.9))
        for number, text in enumerate(dict.fromkeys(texts)):
            self._signatures[number] = _signature(text)
            self._index.insert(number, self._signatures[number])

    def resembles(self, text: str) -> bool:
        """Whether the estimated Jaccard similarity to a held-out text reaches the threshold."""
        signature = _signature(text)
        candidates = self._index.query(signature)
        return any(self._signatures[number].jaccard(signature) >= self._similarity for number in candidates)


def _signature(text: str) -> MinHash:
    """MinHash of the text's overlapping pieces."""
    size = max(1, len(text) - PIECE_CHARACTERS + 1)
    pieces = {text[start : start + PIECE_CHARACTERS] for start in range(size)}
    signature = BLANK.copy()
    signature.update_batch([piece.encode() for piece in pieces])
    return signature
