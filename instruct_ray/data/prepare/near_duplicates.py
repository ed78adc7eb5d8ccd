"""Near duplicates of held-out rows: MinHash over pieces of text, found by locality-sensitive hashing.

Broder, "On the resemblance and containment of documents" (1997). The signatures and the choice of bands are
datasketch's; the index is sorted arrays, which the workers of a node share without a copy.
"""

import zlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from datasketch import MinHash, MinHashLSH

NUM_PERMUTATIONS = 128
PIECE_CHARACTERS = 5
# Signatures are copies of one that has drawn its permutations, and hash with crc32: a third of datasketch's own cost.
BLANK = MinHash(NUM_PERMUTATIONS, hashfunc=zlib.crc32)
# A band's values become one number; two that meet by chance are told apart afterwards.
FACTORS = np.random.default_rng(0).integers(2**63, size=NUM_PERMUTATIONS, dtype=np.uint64) * 2 + 1

UInt32s = npt.NDArray[np.uint32]
UInt64s = npt.NDArray[np.uint64]

# N = held-out texts, M = texts asked about, B = bands, P = permutations


def minhash_signature(text: str) -> UInt32s:
    """MinHash of the text's overlapping pieces; shape (P,)."""
    size = max(1, len(text) - PIECE_CHARACTERS + 1)
    pieces = {text[start : start + PIECE_CHARACTERS] for start in range(size)}
    made = BLANK.copy()
    made.update_batch([piece.encode() for piece in pieces])
    values: UInt32s = made.hashvalues.astype(np.uint32)
    return values


class NearDuplicateIndex:
    """The held-out texts, to be asked whether others resemble any of them."""

    def __init__(self, signatures_NP: UInt32s, similarity: float) -> None:
        # Candidates are compared afterwards, so one too many costs time, and one too few a leak.
        chosen = MinHashLSH(threshold=similarity, num_perm=NUM_PERMUTATIONS, weights=(0.1, 0.9))
        self._num_bands, self._band_size = chosen.b, chosen.r
        self._similarity = similarity
        self._signatures_NP = signatures_NP
        keys_BN = self._keys(signatures_NP)
        self._order_BN = np.argsort(keys_BN, axis=1).astype(np.int32)
        self._sorted_BN = np.take_along_axis(keys_BN, self._order_BN, axis=1)

    def find_similar(self, texts: Iterable[str]) -> set[str]:
        """Those of some texts whose estimated Jaccard similarity to a held-out one reaches the threshold."""
        asked = list(texts)
        if not asked or not len(self._signatures_NP):
            return set()
        signatures_MP = np.stack([minhash_signature(text) for text in asked])
        found_M = np.zeros(len(asked), bool)
        for order_N, sorted_N, keys_M in zip(self._order_BN, self._sorted_BN, self._keys(signatures_MP), strict=True):
            starts_M, stops_M = np.searchsorted(sorted_N, keys_M, "left"), np.searchsorted(sorted_N, keys_M, "right")
            for index in np.flatnonzero((stops_M > starts_M) & ~found_M):
                candidates = self._signatures_NP[order_N[starts_M[index] : stops_M[index]]]
                shares = (candidates == signatures_MP[index]).mean(axis=1)
                found_M[index] = shares.max() >= self._similarity
        return {text for text, is_found in zip(asked, found_M, strict=True) if is_found}

    def _keys(self, signatures_NP: UInt32s) -> UInt64s:
        """A number for each band of each signature; shape (B, N)."""
        used = self._num_bands * self._band_size
        bands = signatures_NP[:, :used].reshape(-1, self._num_bands, self._band_size).astype(np.uint64)
        keys: UInt64s = np.ascontiguousarray((bands * FACTORS[: self._band_size]).sum(axis=2, dtype=np.uint64).T)
        return keys
