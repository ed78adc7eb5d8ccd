"""Sources -> packs: two Ray Data passes over the rows, and a finished folder of Parquet with a ledger beside it.

The first pass reads chunks of files, renders their rows and deals them to shards on disk; the second turns each shard
into packs. Chunks and shards are counted from the data, so any number of workers makes the same bytes.
"""

import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from instruct_ray.base_model.record import record_base
from instruct_ray.config.data import DataConfig
from instruct_ray.config.schema import Config
from instruct_ray.data.ledger import check_complete, sum_counts
from instruct_ray.data.open_run import OpenRun, open_run
from instruct_ray.data.packs.dataset import MANIFEST, PackedDataset, finished_pack_dirs, shard_file
from instruct_ray.data.prepare.digest import describe_changed_reading, packs_digest
from instruct_ray.data.prepare.held_out import TEST_ROWS, VALIDATION_ROWS, HeldOutSummary, write_held_out_rows
from instruct_ray.data.prepare.input_checks import check_first_rows, check_quarantined_rows
from instruct_ray.data.prepare.near_duplicates import NearDuplicateIndex
from instruct_ray.data.prepare.pack_pass import PackPassResult, PackPassSpec, pack_shard
from instruct_ray.data.prepare.tokenize_pass import (
    TokenizePassResult,
    TokenizePassSpec,
    find_oversized_groups,
    tokenize_chunk,
)
from instruct_ray.data.ray_tasks import map_tasks
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.report.report import write_report
from instruct_ray.data.report.statistics import Statistics
from instruct_ray.data.sources.files import Chunk, SourceFile, file_digests, find_source_files, split_into_chunks
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_directory, atomic_write_json

# Text whose rows are sorted and packed together, in one task: bounds its memory.
SHARD_BYTES = 16 * 2**20


@dataclass(frozen=True)
class PrepareResult:
    """What `prepare` found or made."""

    dataset: PackedDataset
    already_done: bool


def check_sources_unchanged(run: OpenRun) -> None:
    """Refuse source files that are not those the run was prepared from.

    Raises:
        InputError: names the first that differs.
    """
    files = find_run_files(run.config)
    if problem := _differing_source(files, file_digests(files), run.packs.manifest):
        raise InputError(problem)


def find_run_files(config: Config) -> list[SourceFile]:
    """The files of `data.sources`.

    Raises:
        InputError: one is missing, empty, unreadable or of an unknown format.
    """
    return find_source_files(config.data.sources, config.run.storage / "sources")


def prepare(config: Config, start_ray: Callable[[], None]) -> PrepareResult:
    """Read, check, split, tokenize and pack the sources of a run; does nothing if that was done before.

    `start_ray` is called once there is work for it.

    Raises:
        InputError: a source or the base model's chat template can't be used, or too many rows; names file, row, reason.
    """
    run = open_run(config, "prepare")
    files = find_run_files(config)
    renderer, source_digests = run.renderer, file_digests(files)
    digest = packs_digest(config, renderer.contract, source_digests)
    target = run.folder.packs_dir / digest[:16]
    if (target / MANIFEST).is_file():
        return PrepareResult(PackedDataset.open(target), already_done=True)
    if finished_pack_dirs(run.folder):
        raise InputError(f"{_difference(run, files, source_digests)}; use another run.name")
    chunks = split_into_chunks(files)
    check_first_rows(files, chunks, config.data)
    start_ray()
    with atomic_directory(target) as unfinished:
        counts = _run_passes(run, files, chunks, unfinished)
        record_base(config, run.base_model)
        names = [file.name for file in files]
        manifest = {
            "digest": digest,
            "contract_digest": renderer.contract.digest,
            "pack_tokens": config.data.pack_tokens,
            "sources": [{"name": n, "sha256": s} for n, s in zip(names, source_digests, strict=True)],
            **counts,
        }
        atomic_write_json(unfinished / MANIFEST, manifest)
    return PrepareResult(PackedDataset.open(target), already_done=False)


def _difference(run: OpenRun, files: Sequence[SourceFile], source_digests: Sequence[str]) -> str:
    """What differs from the request that the run's packs were made for, other than the config's own keys."""
    manifest, contract = run.packs.manifest, run.renderer.contract
    if manifest["contract_digest"] != contract.digest:
        return (
            f"model.base: {run.packs.path} was rendered by contract {manifest['contract_digest'][:12]}, "
            f"{run.base_model.name} now has {contract.digest[:12]}"
        )
    return _differing_source(files, source_digests, manifest) or describe_changed_reading(run.config)


def _differing_source(
    files: Sequence[SourceFile], source_digests: Sequence[str], manifest: dict[str, Any]
) -> str | None:
    prepared = [file["sha256"] for file in manifest["sources"]]
    if len(files) != len(prepared):
        return f"data.sources: {len(files)} files, {len(prepared)} when the run was prepared"
    for file, digest, expected in zip(files, source_digests, prepared, strict=True):
        if digest != expected:
            return f"data.sources: {file.uri} changed since the run was prepared"
    return None


def _run_passes(run: OpenRun, files: list[SourceFile], chunks: list[Chunk], unfinished: Path) -> dict[str, Any]:
    """Both passes; returns the counts."""
    config, folder, renderer = run.config, run.folder, run.renderer
    spool = unfinished / "spool"
    spool.mkdir()
    num_shards = -(-sum(file.num_text_bytes for file in files) // SHARD_BYTES)
    ingested = _run_tokenize_pass(config, files, chunks, renderer, unfinished, spool, num_shards)
    num_read = sum(done.num_read for done in ingested)
    reasons = sum((done.reasons for done in ingested), Counter[str]())
    check_quarantined_rows(files, config.data, reasons, num_read, [row for done in ingested for row in done.bad])

    held_out = write_held_out_rows(spool, [file.uri for file in files], unfinished)
    _check_held_out(config.data, held_out, num_read, _fates(ingested))
    similarity = config.data.near_duplicates
    index = None if similarity is None else NearDuplicateIndex(held_out.signatures_NP, similarity)
    assembled = _run_pack_pass(config, files, unfinished, spool, num_shards, index)
    fates = sum_counts([_fates(ingested), held_out.fates, *(done.fates for done in assembled)])
    check_complete(fates, num_read)
    if not fates["trained"]:
        raise InputError("data.sources: no row is left to train on")
    shutil.rmtree(spool)

    run.freeze()
    (unfinished / TEST_ROWS).replace(folder.test_rows_file)
    (unfinished / VALIDATION_ROWS).replace(folder.validation_rows_file)
    renderer.contract.save(folder.contract_file)
    counts = {
        "num_read": num_read,
        "fates": fates,
        "quarantine_reasons": dict(sorted(reasons.items())),
        "num_cut": held_out.num_cut + sum(done.num_cut for done in assembled),
        "num_train": fates["trained"],
        "num_test": fates["test"],
        "num_validation": fates["validation"],
        **{name: sum(getattr(done, name) for done in assembled) for name in _TOTALS},
        "files": {shard_file(done.shard): done.num_packs for done in assembled if done.num_packs},
    }
    statistics = Statistics()
    for done in assembled:
        statistics.merge(done.statistics)
    write_report(unfinished, counts, statistics, files, config.data.pack_tokens, renderer)
    return counts


def _check_held_out(data: DataConfig, held_out: HeldOutSummary, num_read: int, fates: dict[str, int]) -> None:
    """Some rows must be left for each use."""
    for use, fraction in (("test", data.test_fraction), ("validation", data.validation_fraction)):
        if fraction and not held_out.fates[use]:
            others = ", ".join(f"{count} {fate}" for fate, count in fates.items() if count)
            raise InputError(
                f"data.{use}_fraction={fraction}: no row is held out of {num_read} read"
                f"{f' ({others})' if others else ''}; give more rows"
            )


_TOTALS = ("num_examples", "num_packs", "num_tokens", "num_computed_tokens", "num_trained_tokens")


def _run_tokenize_pass(
    config: Config,
    files: list[SourceFile],
    chunks: list[Chunk],
    renderer: Renderer,
    folder: Path,
    spool: Path,
    num_shards: int,
) -> list[TokenizePassResult]:
    """The first pass, over chunks of files."""
    spread = find_oversized_groups(chunks, config.data, num_shards)
    job = TokenizePassSpec(
        data=config.data,
        seed=config.run.seed,
        tokenizer=pickle.dumps(renderer.tokenizer),
        contract=renderer.contract,
        files=tuple(files),
        folder=folder,
        spool=spool,
        num_shards=num_shards,
        spread_groups=spread,
    )

    return map_tasks(len(chunks), lambda number: tokenize_chunk(chunks[number], job))


def _run_pack_pass(
    config: Config,
    files: list[SourceFile],
    folder: Path,
    spool: Path,
    num_shards: int,
    held_out: NearDuplicateIndex | None,
) -> list[PackPassResult]:
    """The second pass, over shards."""
    uris = tuple(file.uri for file in files)
    job = PackPassSpec(folder, spool, uris, config.data.pack_tokens, config.run.seed)
    shared = ray.put(held_out)

    return map_tasks(num_shards, lambda number: pack_shard(number, job, ray.get(shared)))


def _fates(ingested: Sequence[TokenizePassResult]) -> dict[str, int]:
    return sum_counts(done.fates for done in ingested)
