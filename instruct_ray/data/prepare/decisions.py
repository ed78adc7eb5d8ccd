"""Records of a source file -> the outcome of each: trained on, held out, skipped or quarantined.

`prepare` and `preview` both decide here, so they can't disagree.
"""

import hashlib
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

from instruct_ray.config.data import DataConfig
from instruct_ray.data.ledger import RowOutcome
from instruct_ray.data.prepare.split_rule import BY_INPUT, SplitRule
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.rendering.truncation import FittedRow, TooLongRow, fit_to_limit
from instruct_ray.data.row_id import format_row_id
from instruct_ray.data.sources.records import Record, RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.source_file import SourceFile
from instruct_ray.data.sources.triple import Triple, assign_split


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
    split_key: str = ""
    """The text that decided the split of a row that is trained on or held out."""
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
    records: Sequence[Record],
    file: SourceFile,
    renderer: Renderer,
    data: DataConfig,
    seed: int,
    *,
    split_rule: SplitRule = BY_INPUT,
    max_positions: int | None = None,
) -> list[RowDecision]:
    """Parse and render records of a file, and decide the outcome of each.

    Decisions are in the order of the ledger: first the records that can't be parsed, then the others.

    Args:
        records: the records.
        file: the file that they are from.
        renderer: the renderer of the base model's contract.
        data: the options of the data.
        seed: the seed of the run.
        split_rule: chooses the text that decides the split of a row.
        max_positions: the most tokens that the base model can read; None if it has no such limit.
    """
    source = data.sources[file.source]
    unparsed: list[RowDecision] = []
    parsed: list[tuple[str, bytes, Triple]] = []
    for record in records:
        row_id = format_row_id(file.number, record.position)
        try:
            triple = renderer.clean(parse_row(record.value, row_id, source))
            _check_labels(triple, renderer.contract)
        except RowError as error:
            unparsed.append(RowDecision(row_id, record.digest, "quarantined", error=error))
        else:
            parsed.append((row_id, record.digest, triple))
    row_ids, triples = [row_id for row_id, _, _ in parsed], [triple for _, _, triple in parsed]
    results = fit_to_limit(renderer, row_ids, triples, data, max_positions)
    return unparsed + [
        _decide_row(row_id, digest, result, data, num_copies(source.weight, seed, row_id), split_rule)
        for (row_id, digest, _), result in zip(parsed, results, strict=True)
    ]


def _check_labels(triple: Triple, contract: PromptContract) -> None:
    """Raise a RowError if an answer to train on is none of the labels."""
    if contract.labels is None:
        return
    for answer in (triple.output, *(answer for _, answer in triple.trained_history)):
        if answer not in contract.labels:
            raise RowError("not_a_label", f"has the output {reprlib.repr(answer)}, which is not in data.labels")


def _decide_row(
    row_id: str,
    digest: bytes,
    result: FittedRow | TooLongRow | RowError,
    data: DataConfig,
    copies: int,
    split_rule: SplitRule,
) -> RowDecision:
    if isinstance(result, RowError):
        return RowDecision(row_id, digest, "quarantined", error=result)
    if isinstance(result, TooLongRow):
        return RowDecision(row_id, digest, "too_long", num_tokens=result.num_tokens)
    key = split_rule.key(result.original)
    split = assign_split(key, data.test_fraction, data.validation_fraction)
    if split != "train":
        return RowDecision(row_id, digest, split, result, num_tokens=result.num_tokens, split_key=key)
    if not copies or not is_in_train_fraction(key, data.train_fraction):
        return RowDecision(row_id, digest, "left_out", num_tokens=result.num_tokens, split_key=key)
    return RowDecision(row_id, digest, "trained", result, copies, result.num_tokens, key)


def is_in_train_fraction(key: str, fraction: float) -> bool:
    """Whether the training rows with a split key belong to the fraction that is trained on."""
    # Another hash than that of the split, whose training rows don't have all values.
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"train_fraction").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def num_copies(weight: float, seed: int, row_id: str) -> int:
    """How often an epoch trains on a row: the whole part of the weight, plus one for a seeded fraction of the rows."""
    digest = hashlib.blake2b(f"{seed}:{row_id}".encode(), digest_size=8).digest()
    return int(weight) + (int.from_bytes(digest, "big") < (weight - int(weight)) * 2**64)


def group_key(triple: Triple) -> int:
    """A 64-bit hash that is equal for rows of the same group; see `Triple.group`."""
    text = "\x1e".join(triple.group).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
