"""Sources -> packs: two Ray Data passes over the rows, which write Parquet files, a ledger and a report.

The first pass reads chunks of files, renders their rows and partitions them into shards on disk. The second turns each
shard into packs. The number of chunks and shards depends on the data alone, so any number of workers writes the same
bytes.
"""

import logging
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from instruct_ray.base_model.hf_config import max_positions
from instruct_ray.base_model.record import record_base
from instruct_ray.config.schema import Config
from instruct_ray.data.ledger import check_complete, sum_counts
from instruct_ray.data.open_run import OpenRun, open_run
from instruct_ray.data.packs.dataset import MANIFEST, PackedDataset, finished_pack_dirs, shard_file
from instruct_ray.data.prepare.candidates import CANDIDATES_FILE, write_pool
from instruct_ray.data.prepare.digest import packs_digest
from instruct_ray.data.prepare.held_out import TEST_ROWS, VALIDATION_ROWS, HeldOutSummary, write_held_out_rows
from instruct_ray.data.prepare.input_checks import check_first_rows, check_quarantined_rows
from instruct_ray.data.prepare.near_duplicates import NearDuplicateIndex
from instruct_ray.data.prepare.pack_pass import PackPassResult, PackPassSpec, pack_shard
from instruct_ray.data.prepare.source_changes import (
    READING_VERSION,
    check_rows_were_readable,
    describe_changes,
    list_run_sources,
)
from instruct_ray.data.prepare.split_checks import check_held_out, check_split
from instruct_ray.data.prepare.split_rule import find_split_rule
from instruct_ray.data.prepare.tokenize_pass import (
    TokenizePassResult,
    TokenizePassSpec,
    find_oversized_groups,
    merge_results,
    tokenize_chunk,
)
from instruct_ray.data.ray_tasks import map_tasks
from instruct_ray.data.report.report import write_report
from instruct_ray.data.report.statistics import Statistics
from instruct_ray.data.sources.files import SourceListing, estimate_text_bytes, file_digests, split_into_chunks
from instruct_ray.data.sources.source_file import Chunk, SourceFile
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_directory, atomic_write_json
from instruct_ray.run.lock import RunLock, run_lock

logger = logging.getLogger(__name__)
# Text per shard. One task sorts and packs the rows of a shard, so this bounds its memory.
SHARD_BYTES = 16 * 2**20


@dataclass(frozen=True)
class PrepareResult:
    """The packs of a run."""

    dataset: PackedDataset
    already_done: bool
    """Whether an earlier call prepared them."""
    not_read: str
    """The files in the sources' folders that were not read, and why; empty if there are none."""


def prepare(config: Config, start_ray: Callable[[], None]) -> PrepareResult:
    """Read, check, split, tokenize and pack the sources of a run; does nothing if that was done before.

    `start_ray` is called once there is work for Ray.

    Raises:
        InputError: a source or the base model's chat template can't be used, too many rows are quarantined, the run has
            packs that were prepared from other sources or options, or another process is working on the run.
    """
    run = open_run(config, "prepare")
    listing = list_run_sources(config)
    files = listing.files
    source_digests = file_digests(files)
    digest = packs_digest(config, run.renderer.contract, source_digests)
    packs_dir = run.folder.packs_dir / digest[:16]
    if finished := _find_finished(run, packs_dir, listing, source_digests):
        return finished
    if notice := run.describe_untrained_tokens():
        logger.warning("%s", notice)
    chunks = split_into_chunks(files)
    check_first_rows(files, chunks, config.data)
    with run_lock(run.folder.path) as lock:
        # Again: another process may have held the lock until now.
        if finished := _find_finished(run, packs_dir, listing, source_digests):
            return finished
        start_ray()
        with atomic_directory(packs_dir) as unfinished_dir:
            counts = _Preparation(run, files, chunks, unfinished_dir, lock).execute()
            record_base(config, run.base_model)
            sources = [
                {"name": file.name, "sha256": source_digest}
                for file, source_digest in zip(files, source_digests, strict=True)
            ]
            manifest = {
                "digest": digest,
                "reading_version": READING_VERSION,
                "contract_digest": run.renderer.contract.digest,
                "pack_tokens": config.data.pack_tokens,
                "sources": sources,
                **counts,
            }
            atomic_write_json(unfinished_dir / MANIFEST, manifest)
            lock.check()
    return PrepareResult(PackedDataset.open(packs_dir), already_done=False, not_read=listing.describe_passed_over())


def _find_finished(
    run: OpenRun, packs_dir: Path, listing: SourceListing, source_digests: Sequence[str]
) -> PrepareResult | None:
    """The packs that an earlier call prepared; None if there are none.

    Raises:
        InputError: the run has packs that were prepared from other sources or options, or from fewer rows than can be
            read now.
    """
    if (packs_dir / MANIFEST).is_file():
        packs = PackedDataset.open(packs_dir)
        check_rows_were_readable(packs)
        return PrepareResult(packs, already_done=True, not_read=listing.describe_passed_over())
    if finished_pack_dirs(run.folder):
        raise InputError(f"{describe_changes(run, listing.files, source_digests)}; use another run.name")
    return None


class _Preparation:
    """Both passes of one call of `prepare`."""

    def __init__(
        self, run: OpenRun, files: Sequence[SourceFile], chunks: Sequence[Chunk], folder: Path, lock: RunLock
    ) -> None:
        self._run, self._files, self._chunks, self._folder, self._lock = run, files, chunks, folder, lock
        self._data, self._uris = run.config.data, tuple(file.uri for file in files)
        self._num_shards = -(-estimate_text_bytes(files) // SHARD_BYTES)
        self._shuffle_dir = folder / "shuffle"

    def execute(self) -> dict[str, Any]:
        """Run both passes, then write the run's held-out rows and contract, and the report; returns the counts."""
        self._shuffle_dir.mkdir()
        tokenized = self._run_tokenize_pass()
        check_quarantined_rows(self._files, self._data, tokenized.quarantined, tokenized.num_read)
        held_out = write_held_out_rows(self._shuffle_dir, self._uris, self._folder)
        unused = sum_counts([tokenized.outcomes, held_out.outcomes])
        check_held_out(self._data, unused, tokenized.num_read, tokenized.split_keys)
        shards = self._run_pack_pass(held_out, frozenset(one.row_id for one in tokenized.candidates))
        outcomes = sum_counts([tokenized.outcomes, held_out.outcomes, *(shard.outcomes for shard in shards)])
        check_complete(outcomes, tokenized.num_read)
        check_split(self._data, outcomes, tokenized.split_keys)
        trained_ids = {row_id for shard in shards for row_id in shard.trained_candidates}
        write_pool(self._shuffle_dir, self._folder / CANDIDATES_FILE, tokenized.candidates, trained_ids)
        shutil.rmtree(self._shuffle_dir)

        self._lock.check()
        self._write_run_files()
        counts = _build_counts(tokenized, held_out, shards, outcomes)
        statistics = Statistics()
        for shard in shards:
            statistics.merge(shard.statistics)
        write_report(self._folder, counts, statistics, self._files, self._data.pack_tokens, self._run.renderer)
        return counts

    def _run_tokenize_pass(self) -> TokenizePassResult:
        renderer = self._run.renderer
        spec = TokenizePassSpec(
            data=self._data,
            seed=self._run.config.run.seed,
            tokenizer=pickle.dumps(renderer.tokenizer),
            contract=renderer.contract,
            files=tuple(self._files),
            folder=self._folder,
            shuffle_dir=self._shuffle_dir,
            num_shards=self._num_shards,
            oversized_groups=find_oversized_groups(self._chunks, self._data, self._num_shards),
            split_rule=find_split_rule(self._files, self._data),
            max_positions=max_positions(self._run.hf_config),
            num_chunks=len(self._chunks),
        )
        chunks = self._chunks
        return merge_results(map_tasks(len(chunks), lambda number: tokenize_chunk(chunks[number], spec)))

    def _run_pack_pass(self, held_out: HeldOutSummary, candidate_ids: frozenset[str]) -> list[PackPassResult]:
        spec = PackPassSpec(
            folder=self._folder,
            shuffle_dir=self._shuffle_dir,
            files=self._uris,
            pack_tokens=self._data.pack_tokens,
            seed=self._run.config.run.seed,
            candidate_ids=candidate_ids,
        )
        similarity = self._data.near_duplicates
        index = None if similarity is None else NearDuplicateIndex(held_out.signatures_NP, similarity)
        index_ref = ray.put(index)
        return map_tasks(self._num_shards, lambda number: pack_shard(number, spec, ray.get(index_ref)))

    def _write_run_files(self) -> None:
        """Freeze the config and move the held-out rows and the few-shot candidates to the run's folder."""
        run_folder = self._run.folder
        self._run.freeze()
        (self._folder / TEST_ROWS).replace(run_folder.test_rows_file)
        (self._folder / VALIDATION_ROWS).replace(run_folder.validation_rows_file)
        (self._folder / CANDIDATES_FILE).replace(run_folder.few_shot_file)
        self._run.renderer.contract.save(run_folder.contract_file)


def _build_counts(
    tokenized: TokenizePassResult,
    held_out: HeldOutSummary,
    shards: Sequence[PackPassResult],
    outcomes: dict[str, int],
) -> dict[str, Any]:
    """The counts of the manifest; its keys are those of earlier versions."""
    return {
        "num_read": tokenized.num_read,
        "fates": outcomes,
        "quarantine_reasons": dict(sorted(tokenized.quarantined.reasons.items())),
        "num_cut": held_out.num_truncated + sum(shard.num_truncated for shard in shards),
        "num_train": outcomes["trained"],
        "num_test": outcomes["test"],
        "num_validation": outcomes["validation"],
        "num_examples": sum(shard.num_examples for shard in shards),
        "num_packs": sum(shard.num_packs for shard in shards),
        "num_tokens": sum(shard.num_tokens for shard in shards),
        "num_computed_tokens": sum(shard.num_computed_tokens for shard in shards),
        "num_trained_tokens": sum(shard.num_target_tokens for shard in shards),
        "files": {shard_file(shard.shard): shard.num_packs for shard in shards if shard.num_packs},
    }
