"""First pass of prepare: a chunk of a file -> rendered rows, partitioned into shards; a ledger of the other rows."""

import json
import pickle
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from instruct_ray.config.data import DataConfig
from instruct_ray.data.ledger import Ledger, LedgerEntry, sum_counts
from instruct_ray.data.prepare.candidates import Candidate, CandidatePool, num_offered, write_offered
from instruct_ray.data.prepare.decisions import RowDecision, decide_rows, group_key
from instruct_ray.data.prepare.input_checks import QuarantineSummary
from instruct_ray.data.prepare.near_duplicates import minhash_signature
from instruct_ray.data.prepare.shuffle_files import HeldOutRow, RenderedRow, write_block, write_held_out_block
from instruct_ray.data.prepare.split_rule import KeyCounts, SplitRule
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.rendering.truncation import FittedRow
from instruct_ray.data.report.statistics import report_keys
from instruct_ray.data.sources.readers import read_records
from instruct_ray.data.sources.records import Record, RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.source_file import Chunk, SourceFile
from instruct_ray.data.sources.triple import HeldOutSplit

# Rows that are tokenized together, and rows that are kept before a block is written: both bound memory.
ROWS_PER_BATCH = 512
ROWS_PER_BLOCK = 20_000
# Chunks, and rows of each, that are sampled to find groups too large for one shard.
SAMPLED_CHUNKS = 64
ROWS_PER_SAMPLE = 256
# The most frequent split keys of a chunk, which the driver merges.
MAX_KEYS_PER_CHUNK = 20


@dataclass(frozen=True)
class TokenizePassSpec:
    """The inputs that all tasks of the pass share."""

    data: DataConfig
    seed: int
    tokenizer: bytes
    """Pickled: to load it, a worker would run the model's own code, and it might not see the base model's folder."""
    contract: PromptContract
    files: tuple[SourceFile, ...]
    folder: Path
    """Where the ledger is written."""
    shuffle_dir: Path
    """Where rows are written for the second pass."""
    num_shards: int
    oversized_groups: frozenset[int]
    """Groups too large for one shard; their rows are spread over all shards."""
    split_rule: SplitRule
    max_positions: int | None
    """The most tokens that the base model can read; None if it has no such limit."""
    num_chunks: int

    def choose_shard(self, group: int, content_digest: bytes) -> int:
        """Choose a row's shard: the same for all rows of a group, and always the same for exact duplicates."""
        key = int.from_bytes(content_digest[:8], "big") if group in self.oversized_groups else group
        return key % self.num_shards


@dataclass
class TokenizePassResult:
    """Counts of one task, or of several tasks merged."""

    num_read: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    """Rows that the second pass does not get, by outcome."""
    quarantined: QuarantineSummary = field(default_factory=QuarantineSummary)
    split_keys: KeyCounts = field(default_factory=KeyCounts)
    """Rows by the text that decided their split."""
    candidates: list[Candidate] = field(default_factory=list)
    """Rows that few-shot examples may be chosen from."""


def merge_results(results: Iterable[TokenizePassResult]) -> TokenizePassResult:
    """Merge the results of all chunks, in the order of the chunks."""
    merged = TokenizePassResult(outcomes=sum_counts([]))
    for result in results:
        merged.num_read += result.num_read
        merged.outcomes = sum_counts([merged.outcomes, result.outcomes])
        merged.quarantined.merge(result.quarantined)
        merged.split_keys.merge(result.split_keys)
        merged.candidates += result.candidates
    return merged


def find_oversized_groups(chunks: Sequence[Chunk], data: DataConfig, num_shards: int) -> frozenset[int]:
    """Find groups that would fill more than half a shard, estimated from a sample of rows from all over the data."""
    if num_shards == 1:
        return frozenset()
    counts: Counter[int] = Counter()
    stride = -(-len(chunks) // SAMPLED_CHUNKS)
    for chunk in chunks[::stride]:
        for record in islice(read_records(chunk, data), ROWS_PER_SAMPLE):
            try:
                counts[group_key(parse_row(record.value, "", data.sources[chunk.file.source]))] += 1
            except RowError:
                continue
    return frozenset(group for group, count in counts.items() if count > 0.5 * counts.total() / num_shards)


def tokenize_chunk(chunk: Chunk, spec: TokenizePassSpec) -> TokenizePassResult:
    """Read, check, split and tokenize a chunk; write its rows for the second pass, and the ledger of the others."""
    task = _TokenizeTask(chunk, spec)
    records = read_records(chunk, spec.data)
    while batch := list(islice(records, ROWS_PER_BATCH)):
        task.add(batch)
    return task.finish()


class _TokenizeTask:
    """The state of one call of `tokenize_chunk`."""

    def __init__(self, chunk: Chunk, spec: TokenizePassSpec) -> None:
        self._chunk, self._spec = chunk, spec
        self._renderer = Renderer(_load_tokenizer(spec.tokenizer), spec.contract)
        self._ledger = Ledger([file.uri for file in spec.files])
        self._result = TokenizePassResult()
        self._num_blocks = 0
        self._candidates = CandidatePool(num_offered(spec.num_chunks), spec.seed)
        self._start_block()

    def add(self, records: Sequence[Record]) -> None:
        """Decide the outcome of each record of a batch, and keep or count it."""
        spec = self._spec
        self._result.num_read += len(records)
        decisions = decide_rows(
            records,
            self._chunk.file,
            self._renderer,
            spec.data,
            spec.seed,
            split_rule=spec.split_rule,
            max_positions=spec.max_positions,
        )
        for decision in decisions:
            if decision.split_key:
                self._result.split_keys.add(decision.split_key)
            if decision.fitted is None:
                self._count_unused(decision)
            elif decision.outcome == "trained":
                self._candidates.add(decision.row_id, decision.fitted.triple)
                self._add_train_row(build_rendered_row(decision, decision.fitted, spec.data, spec.split_rule))
            else:
                self._held_out.append(_build_held_out_row(decision, decision.fitted, spec.data, spec.split_rule))
        if self._num_train_rows + len(self._held_out) >= ROWS_PER_BLOCK:
            self._write_block()

    def finish(self) -> TokenizePassResult:
        """Write the remaining rows and the ledger."""
        self._write_block()
        self._ledger.write(self._spec.folder / "ledger" / f"ingest-{self._chunk.number:06d}.parquet")
        self._result.outcomes = self._ledger.counts
        offered_file = self._spec.shuffle_dir / f"offered-{self._chunk.number:06d}.jsonl"
        self._result.candidates = write_offered(offered_file, self._candidates)
        self._result.split_keys.trim(MAX_KEYS_PER_CHUNK)
        return self._result

    def _count_unused(self, decision: RowDecision) -> None:
        reason, detail = "", ""
        if decision.error is not None:
            self._result.quarantined.add(decision.row_id, decision.error)
            reason, detail = decision.error.reason, decision.error.detail
        self._ledger.add(
            LedgerEntry(
                decision.row_id, decision.digest, decision.outcome, reason, detail, num_tokens=decision.num_tokens
            )
        )

    def _add_train_row(self, row: RenderedRow) -> None:
        self._shards[self._spec.choose_shard(row.group, row.content_digest)].append(row)
        self._num_train_rows += 1

    def _write_block(self) -> None:
        name = f"{self._chunk.number:06d}-{self._num_blocks:04d}.arrow"
        if self._num_train_rows:
            write_block(self._spec.shuffle_dir / f"block-{name}", self._shards)
        if self._held_out:
            write_held_out_block(self._spec.shuffle_dir / f"held-out-{name}", self._held_out)
        self._num_blocks += 1
        self._start_block()

    def _start_block(self) -> None:
        self._shards: list[list[RenderedRow]] = [[] for _ in range(self._spec.num_shards)]
        self._num_train_rows = 0
        self._held_out: list[HeldOutRow] = []


def build_rendered_row(
    decision: RowDecision, fitted: FittedRow, data: DataConfig, split_rule: SplitRule
) -> RenderedRow:
    """Build the row that the second pass packs."""
    triple = fitted.triple
    instruction, answer = report_keys(triple)
    return RenderedRow(
        row_id=decision.row_id,
        digest=decision.digest,
        content_digest=triple.content_digest,
        group=group_key(triple),
        split_key="" if data.near_duplicates is None else split_rule.key(triple),
        copies=decision.copies,
        was_truncated=fitted.was_truncated,
        num_tokens=fitted.num_tokens,
        instruction=instruction,
        answer=answer,
        examples=fitted.examples,
    )


def _build_held_out_row(
    decision: RowDecision, fitted: FittedRow, data: DataConfig, split_rule: SplitRule
) -> HeldOutRow:
    triple = fitted.triple
    split: HeldOutSplit = "test" if decision.outcome == "test" else "validation"
    return HeldOutRow(
        row_id=decision.row_id,
        split=split,
        digest=decision.digest,
        content_digest=triple.content_digest,
        num_tokens=fitted.num_tokens,
        was_truncated=fitted.was_truncated,
        triple_json=json.dumps(triple.dump(), ensure_ascii=False),
        signature=b"" if data.near_duplicates is None else minhash_signature(split_rule.key(triple)).tobytes(),
    )


@lru_cache(maxsize=1)
def _load_tokenizer(pickled: bytes) -> PreTrainedTokenizerBase:
    """Unpickle the tokenizer, once for all tasks of a worker process."""
    tokenizer: PreTrainedTokenizerBase = pickle.loads(pickled)
    return tokenizer
