"""First pass of prepare: a chunk of a file -> rendered rows dealt to shards; the fate of those that go no further."""

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from instruct_ray.config.data import DataConfig
from instruct_ray.data.ledger import Ledger, LedgerEntry
from instruct_ray.data.prepare.input_checks import MAX_NAMED_ROWS
from instruct_ray.data.prepare.near_duplicates import minhash_signature
from instruct_ray.data.prepare.shuffle_files import HeldOutRow, RenderedRow, write_block, write_held_out_rows
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.rendering.truncation import FittedRow, TooLongRow, fit_to_limit
from instruct_ray.data.report.statistics import report_keys
from instruct_ray.data.row_id import parse_row_id
from instruct_ray.data.sources.files import Chunk, SourceFile
from instruct_ray.data.sources.readers import read_records
from instruct_ray.data.sources.records import Record, RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.triple import Triple

# Rows tokenised together, and rows held before they are written: both bound memory, whatever the size of the data.
ROWS_PER_BATCH = 512
ROWS_PER_PIECE = 20_000
# Rows of the sources that are looked at to find groups too large for one shard.
SAMPLED_CHUNKS = 64
ROWS_PER_SAMPLE = 256


@dataclass(frozen=True)
class TokenizePassSpec:
    """What every task of the pass needs to know."""

    data: DataConfig
    seed: int
    tokenizer: bytes
    """Pickled: a worker would load the model's code to find out which it is, and might not see the base's folder."""
    contract: PromptContract
    files: tuple[SourceFile, ...]
    folder: Path
    """Where the ledger is written."""
    spool: Path
    """Where rows are written for the second pass."""
    num_shards: int
    spread_groups: frozenset[int]
    """Groups that are dealt to all shards, being too large for one."""

    def shard_of(self, group: int, content: bytes) -> int:
        """Rows of a group meet in one shard, exact duplicates always."""
        key = int.from_bytes(content[:8], "big") if group in self.spread_groups else group
        return key % self.num_shards


@dataclass
class TokenizePassResult:
    """What a task has done."""

    num_read: int = 0
    fates: dict[str, int] = field(default_factory=dict)
    """Rows that go no further, by fate."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Rows that can't be used, by reason."""
    bad: list[tuple[int, int, str]] = field(default_factory=list)
    """The first of them: file, position, what is wrong."""


def group_key(triple: Triple) -> int:
    """A hash of what a group's rows have in common."""
    text = "\x1e".join(triple.group).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def find_oversized_groups(chunks: Sequence[Chunk], data: DataConfig, num_shards: int) -> frozenset[int]:
    """Groups that would fill more than half a shard, judged by the first rows of chunks all over the data."""
    if num_shards == 1:
        return frozenset()
    counts: Counter[int] = Counter()
    step = -(-len(chunks) // SAMPLED_CHUNKS)
    for chunk in chunks[::step]:
        for record in islice(read_records(chunk, data), ROWS_PER_SAMPLE):
            try:
                counts[group_key(parse_row(record.value, "", data.sources[chunk.file.source]))] += 1
            except RowError:
                continue
    return frozenset(group for group, count in counts.items() if count > 0.5 * counts.total() / num_shards)


def tokenize_chunk(chunk: Chunk, job: TokenizePassSpec) -> TokenizePassResult:
    """Read, check, split and tokenise a chunk; write what goes on."""
    task = _TokenizeTask(job, chunk)
    records = read_records(chunk, job.data)
    while batch := list(islice(records, ROWS_PER_BATCH)):
        task.add(batch)
    return task.finish()


class _TokenizeTask:
    """The state of one call of `ingest`."""

    def __init__(self, job: TokenizePassSpec, chunk: Chunk) -> None:
        self.job, self.chunk = job, chunk
        self.source = job.data.sources[chunk.file.source]
        self.renderer = Renderer(_tokenizer(job.tokenizer), job.contract)
        self.ledger = Ledger([file.uri for file in job.files])
        self.done = TokenizePassResult()
        self.num_pieces = 0
        self.shards: list[list[RenderedRow]] = [[] for _ in range(job.num_shards)]
        self.num_held = 0
        self.held_out: list[HeldOutRow] = []

    def add(self, records: Sequence[Record]) -> None:
        """Take records to a shard, the held-out side, or the ledger."""
        self.done.num_read += len(records)
        row_ids: list[str] = []
        triples: list[Triple] = []
        digests: list[bytes] = []
        for record in records:
            row_id = f"{self.chunk.file.number}:{record.position}"
            try:
                triple = parse_row(record.value, row_id, self.source)
            except RowError as error:
                self._refuse(row_id, record.digest, error)
            else:
                row_ids.append(row_id)
                triples.append(triple)
                digests.append(record.digest)
        fitted = fit_to_limit(self.renderer, row_ids, triples, self.job.data)
        for row_id, digest, result in zip(row_ids, digests, fitted, strict=True):
            if isinstance(result, RowError):
                self._refuse(row_id, digest, result)
            elif isinstance(result, TooLongRow):
                self.ledger.add(LedgerEntry(row_id, digest, "too_long", num_tokens=result.num_tokens))
            else:
                self._keep(row_id, digest, result)
        if self.num_held + len(self.held_out) >= ROWS_PER_PIECE:
            self._write_piece()

    def finish(self) -> TokenizePassResult:
        """Write what is left."""
        self._write_piece()
        self.ledger.write(self.job.folder / "ledger" / f"ingest-{self.chunk.number:06d}.parquet")
        self.done.fates = self.ledger.counts
        return self.done

    def _refuse(self, row_id: str, digest: bytes, error: RowError) -> None:
        self.done.reasons[error.reason] += 1
        if len(self.done.bad) < MAX_NAMED_ROWS:
            self.done.bad.append((*parse_row_id(row_id), error.detail))
        self.ledger.add(LedgerEntry(row_id, digest, "quarantined", error.reason, error.detail))

    def _keep(self, row_id: str, digest: bytes, fitted: FittedRow) -> None:
        triple, content = fitted.triple, fitted.triple.content_digest
        side = fitted.original.assign_split(self.job.data.test_fraction, self.job.data.validation_fraction)
        if side != "train":
            mark = b"" if self.job.data.near_duplicates is None else minhash_signature(triple.split_key).tobytes()
            line = json.dumps(triple.dump(), ensure_ascii=False)
            self.held_out.append(
                HeldOutRow(row_id, side, digest, content, fitted.num_tokens, fitted.was_truncated, line, mark)
            )
            return
        copies = num_copies(self.source.weight, self.job.seed, row_id)
        if not copies:
            self.ledger.add(LedgerEntry(row_id, digest, "left_out", num_tokens=fitted.num_tokens))
            return
        group = group_key(triple)
        key = triple.split_key if self.job.data.near_duplicates is not None else ""
        counted = report_keys(triple)
        row = RenderedRow(
            row_id,
            digest,
            content,
            group,
            key,
            copies,
            fitted.was_truncated,
            fitted.num_tokens,
            *counted,
            fitted.examples,
        )
        self.shards[self.job.shard_of(group, content)].append(row)
        self.num_held += 1

    def _write_piece(self) -> None:
        name = f"{self.chunk.number:06d}-{self.num_pieces:04d}.arrow"
        if self.num_held:
            write_block(self.job.spool / f"piece-{name}", self.shards)
        if self.held_out:
            write_held_out_rows(self.job.spool / f"held-out-{name}", self.held_out)
        self.shards = [[] for _ in range(self.job.num_shards)]
        self.held_out, self.num_held = [], 0
        self.num_pieces += 1


def num_copies(weight: float, seed: int, row_id: str) -> int:
    """How often an epoch trains a row: the whole part of the weight, and its fraction by a seeded hash."""
    digest = hashlib.blake2b(f"{seed}:{row_id}".encode(), digest_size=8).digest()
    return int(weight) + (int.from_bytes(digest, "big") < (weight - int(weight)) * 2**64)


@lru_cache(maxsize=1)
def _tokenizer(pickled: bytes) -> PreTrainedTokenizerBase:
    """One for all tasks of a worker process."""
    tokenizer: PreTrainedTokenizerBase = pickle.loads(pickled)
    return tokenizer
