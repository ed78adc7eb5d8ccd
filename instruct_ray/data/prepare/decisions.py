"""Records of a source file -> the outcome of each: trained on, held out, skipped or quarantined.

`prepare` and `preview` both decide here, so they can't disagree.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from instruct_ray.config.data import DataConfig
from instruct_ray.data.ledger import RowOutcome
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.rendering.truncation import FittedRow, TooLongRow, fit_to_limit
from instruct_ray.data.row_id import format_row_id
from instruct_ray.data.sources.records import Record, RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.source_file import SourceFile
from instruct_ray.data.sources.triple import Triple


@dataclass(frozen=True)
class RowDecision:
    """The outcome of a record, as far as the record alone decides it."""

    row_id: str
    digest: bytes
    """sha256 of the record."""
    outcome: RowOutcome
    """Not final for rows that are trained on or held out: those may turn out to be duplicates."""
    fitted: FittedRow | None = None
    """The rendered row, if it is trained on or held out."""
    copies: int = 0
    """How often an epoch trains on the row."""
    num_tokens: int = 0
    error: RowError | None = None
    """Why the row is quarantined, if it is."""


class DuplicateFilter:
    """Recognizes rows whose content was added before."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def add(self, content_digest: bytes) -> bool:
        """Add a row's content; returns whether it is new."""
        is_new = content_digest not in self._seen
        self._seen.add(content_digest)
        return is_new


def decide_rows(
    records: Sequence[Record], file: SourceFile, renderer: Renderer, data: DataConfig, seed: int
) -> list[RowDecision]:
    """Parse and render records of a file, and decide the outcome of each.

    Decisions are in the order of the ledger: first the records that can't be parsed, then the others.
    """
    source = data.sources[file.source]
    unparsed: list[RowDecision] = []
    row_ids: list[str] = []
    digests: list[bytes] = []
    triples: list[Triple] = []
    for record in records:
        row_id = format_row_id(file.number, record.position)
        try:
            triple = parse_row(record.value, row_id, source)
        except RowError as error:
            unparsed.append(RowDecision(row_id, record.digest, "quarantined", error=error))
        else:
            row_ids.append(row_id)
            digests.append(record.digest)
            triples.append(triple)
    results = fit_to_limit(renderer, row_ids, triples, data)
    return unparsed + [
        _decide_row(row_id, digest, result, data, num_copies(source.weight, seed, row_id))
        for row_id, digest, result in zip(row_ids, digests, results, strict=True)
    ]


def _decide_row(
    row_id: str, digest: bytes, result: FittedRow | TooLongRow | RowError, data: DataConfig, copies: int
) -> RowDecision:
    if isinstance(result, RowError):
        return RowDecision(row_id, digest, "quarantined", error=result)
    if isinstance(result, TooLongRow):
        return RowDecision(row_id, digest, "too_long", num_tokens=result.num_tokens)
    split = result.original.assign_split(data.test_fraction, data.validation_fraction)
    if split != "train":
        return RowDecision(row_id, digest, split, result, num_tokens=result.num_tokens)
    if not copies:
        return RowDecision(row_id, digest, "left_out", num_tokens=result.num_tokens)
    return RowDecision(row_id, digest, "trained", result, copies, result.num_tokens)


def num_copies(weight: float, seed: int, row_id: str) -> int:
    """How often an epoch trains on a row: the whole part of the weight, plus one for a seeded fraction of the rows."""
    digest = hashlib.blake2b(f"{seed}:{row_id}".encode(), digest_size=8).digest()
    return int(weight) + (int.from_bytes(digest, "big") < (weight - int(weight)) * 2**64)


def group_key(triple: Triple) -> int:
    """A 64-bit hash that is equal for rows of the same group; see `Triple.group`."""
    text = "\x1e".join(triple.group).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
