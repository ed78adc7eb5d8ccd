"""The text that decides the split of a row, so chosen that no text decides about more than a small part of the rows.

Rows with the same input are kept in one split (`Triple.split_key`). An input that very many rows share is a placeholder
(`None`, `N/A`, `-`) or one constant input, whatever it says: keeping its rows together would put them all on one side.
Their instruction and input together decide instead.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from instruct_ray.config.data import DataConfig
from instruct_ray.data.sources.files import split_into_chunks
from instruct_ray.data.sources.readers import read_records
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.source_file import SourceFile
from instruct_ray.data.sources.triple import Triple

# An input is frequent if more rows than this have it, and more than a fraction of all rows: this, or half of the
# smallest held-out fraction if that is less.
MIN_FREQUENT_ROWS = 10
MAX_KEY_FRACTION = 0.05
# What is read to find frequent inputs: the first rows of chunks from all over the data, or all rows of small data.
SAMPLED_FILES = SAMPLED_CHUNKS = 64
SAMPLED_ROWS = 100_000
SAMPLED_BYTES = 32 * 2**20
# Keys that are counted one by one, and those of them that are kept when there are more.
MAX_COUNTED_KEYS = 100_000
MAX_KEPT_KEYS = 1000
MAX_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class SplitRule:
    """Chooses the text that decides the split of a row."""

    frequent_keys: frozenset[bytes] = frozenset()
    """Digests of the split keys that too many rows have."""

    def key(self, triple: Triple) -> str:
        """Return the text that decides: `split_key`, or if it is frequent `prompt_key`."""
        key = triple.split_key
        return triple.prompt_key if self.frequent_keys and _digest(key) in self.frequent_keys else key


BY_INPUT = SplitRule()


@dataclass
class KeyCounts:
    """Rows by split key: exact for the most frequent keys, of bounded size."""

    num_rows: int = 0
    counts: Counter[bytes] = field(default_factory=Counter)
    texts: dict[bytes, str] = field(default_factory=dict)
    """The beginning of the text of each counted key."""

    def add(self, key: str) -> None:
        """Count a row with this key."""
        digest = _digest(key)
        self.num_rows += 1
        self.counts[digest] += 1
        if self.counts[digest] == 1:
            self.texts[digest] = key[:MAX_SHOWN_CHARACTERS]
            if len(self.counts) > MAX_COUNTED_KEYS:
                self.trim(MAX_KEPT_KEYS)

    def merge(self, other: "KeyCounts") -> None:
        """Add the counts of another part of the data."""
        self.num_rows += other.num_rows
        self.counts.update(other.counts)
        self.texts |= other.texts
        if len(self.counts) > MAX_COUNTED_KEYS:
            self.trim(MAX_KEPT_KEYS)

    def trim(self, limit: int) -> None:
        """Keep the most frequent keys only."""
        self.counts = Counter(dict(self.counts.most_common(limit)))
        self.texts = {digest: self.texts[digest] for digest in self.counts}

    def describe_most_frequent(self) -> str:
        """Describe the key that most rows have; empty if no key has several rows."""
        [(digest, count)] = self.counts.most_common(1) or [(b"", 0)]
        if count < 2:
            return ""
        return f"{count} rows have the same input or prompt {self.texts[digest]!r}, which keeps them in one split"


def find_split_rule(files: Sequence[SourceFile], data: DataConfig) -> SplitRule:
    """Find the split keys that too many rows have, from a sample of bounded size that depends on the files alone.

    Raises:
        InputError: a file can't be read; names it.
    """
    keys = KeyCounts()
    sampled_files = files[:: -(-len(files) // SAMPLED_FILES)]
    chunks = split_into_chunks(sampled_files)
    # Parquet files without rows have no chunks.
    if not chunks:
        return BY_INPUT
    chunks = chunks[:: -(-len(chunks) // SAMPLED_CHUNKS)]
    max_rows, max_bytes = SAMPLED_ROWS // len(chunks), SAMPLED_BYTES // len(chunks)
    for chunk in chunks:
        num_bytes = 0
        for record in islice(read_records(chunk, data, sample_bytes=max_bytes), max_rows):
            try:
                triple = parse_row(record.value, "", data.sources[chunk.file.source])
            except RowError:
                continue
            keys.add(triple.split_key)
            num_bytes += triple.num_characters
            if num_bytes > max_bytes:
                break
    smallest = min(fraction for fraction in (data.test_fraction, data.validation_fraction) if fraction)
    limit = max(MIN_FREQUENT_ROWS, keys.num_rows * min(MAX_KEY_FRACTION, smallest / 2))
    return SplitRule(frozenset(digest for digest, count in keys.counts.items() if count > limit))


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=8).digest()
