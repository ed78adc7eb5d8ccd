"""Near duplicates of held-out rows, found by MinHash over character shingles and locality-sensitive hashing (LSH).

Broder, "On the resemblance and containment of documents" (1997). Signatures and the number of bands come from
datasketch. The index consists of sorted arrays, which the workers of a node share without a copy.
"""

import zlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from datasketch import MinHash, MinHashLSH

NUM_PERMUTATIONS = 128
SHINGLE_CHARACTERS = 5
# Copied for each signature, so that the permutations are drawn once. With crc32, a third of datasketch's default cost.
EMPTY_MINHASH = MinHash(NUM_PERMUTATIONS, hashfunc=zlib.crc32)
# Multipliers that hash the values of a band to one number. Collisions are harmless: candidates are compared afterwards.
BAND_MULTIPLIERS = np.random.default_rng(0).integers(2**63, size=NUM_PERMUTATIONS, dtype=np.uint64) * 2 + 1

UInt32s = npt.NDArray[np.uint32]
UInt64s = npt.NDArray[np.uint64]

# N = held-out texts, M = query texts, B = bands, P = permutations


def minhash_signature(text: str) -> UInt32s:
    """Compute the MinHash signature of a text's shingles; shape (P,)."""
    num_shingles = max(1, len(text) - SHINGLE_CHARACTERS + 1)
    shingles = {text[start : start + SHINGLE_CHARACTERS] for start in range(num_shingles)}
    minhash = EMPTY_MINHASH.copy()
    minhash.update_batch([shingle.encode() for shingle in shingles])
    signature_P: UInt32s = minhash.hashvalues.astype(np.uint32)
    return signature_P


class NearDuplicateIndex:
    """An LSH index of the held-out texts."""

    def __init__(self, signatures_NP: UInt32s, similarity: float) -> None:
        # Few false negatives, since they leak test rows; false positives only cost time, as candidates are compared.
        lsh = MinHashLSH(threshold=similarity, num_perm=NUM_PERMUTATIONS, weights=(0.1, 0.9))
        self._num_bands, self._band_size = lsh.b, lsh.r
        self._similarity = similarity
        self._signatures_NP = signatures_NP
        keys_BN = self._band_keys(signatures_NP)
        self._order_BN = np.argsort(keys_BN, axis=1).astype(np.int32)
        self._sorted_BN = np.take_along_axis(keys_BN, self._order_BN, axis=1)

    def find_similar(self, texts: Iterable[str]) -> set[str]:
        """Find the texts whose estimated Jaccard similarity to a held-out text reaches the threshold."""
        queries = list(texts)
        if not queries or not len(self._signatures_NP):
            return set()
        signatures_MP = np.stack([minhash_signature(text) for text in queries])
        keys_BM = self._band_keys(signatures_MP)
        is_similar_M = np.zeros(len(queries), bool)
        for order_N, sorted_N, keys_M in zip(self._order_BN, self._sorted_BN, keys_BM, strict=True):
            starts_M, stops_M = np.searchsorted(sorted_N, keys_M, "left"), np.searchsorted(sorted_N, keys_M, "right")
            for index in np.flatnonzero((stops_M > starts_M) & ~is_similar_M):
                candidates = self._signatures_NP[order_N[starts_M[index] : stops_M[index]]]
                similarities = (candidates == signatures_MP[index]).mean(axis=1)
                is_similar_M[index] = similarities.max() >= self._similarity
        return {text for text, is_similar in zip(queries, is_similar_M, strict=True) if is_similar}

    def _band_keys(self, signatures_NP: UInt32s) -> UInt64s:
        """Hash each band of each signature to a number; shape (B, N)."""
        used = self._num_bands * self._band_size
        bands = signatures_NP[:, :used].reshape(-1, self._num_bands, self._band_size).astype(np.uint64)
        keys: UInt64s = np.ascontiguousarray(
            (bands * BAND_MULTIPLIERS[: self._band_size]).sum(axis=2, dtype=np.uint64).T
        )
        return keys
