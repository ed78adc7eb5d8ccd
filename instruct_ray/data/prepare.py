"""Sources -> packs: two Ray Data passes over the rows, and a finished folder of Parquet with a ledger beside it.

The first pass reads chunks of files, renders their rows and deals them to shards on disk; the second turns each shard
into packs. Chunks and shards are counted from the data, so any number of workers makes the same bytes.
"""

import hashlib
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from instruct_ray import base, run
from instruct_ray.config import Config, DataConfig
from instruct_ray.data import ledger
from instruct_ray.data.assemble import Assemble, Assembled, assemble
from instruct_ray.data.dataset import MANIFEST, PackedDataset, shard_file
from instruct_ray.data.hold_out import TEST_ROWS, VALIDATION_ROWS, HoldOut, hold_out
from instruct_ray.data.ingest import Ingest, Ingested, find_spread_groups, ingest
from instruct_ray.data.inspection import report
from instruct_ray.data.near_duplicates import HeldOut
from instruct_ray.data.reading import sources
from instruct_ray.data.reading.sources import Chunk, SourceFile
from instruct_ray.data.reading.usable import check_bad_rows, check_first_rows
from instruct_ray.data.rendering.contract import Contract
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.rendering.templates import renderer_of
from instruct_ray.data.statistics import Statistics
from instruct_ray.data.tasks import run_each
from instruct_ray.errors import InputError

# Text whose rows are sorted and packed together, in one task: bounds its memory.
SHARD_BYTES = 16 * 2**20
# What decides the packs.
SECTIONS = ("run", "data", "model")
# Raised when the same rows would be packed otherwise.
PACKING_VERSION = 2


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found or made."""

    dataset: PackedDataset
    already_done: bool


def find(config: Config) -> PackedDataset:
    """The finished packs of a run.

    Raises:
        InputError: the run has none yet.
    """
    folder = run.RunFolder.of(config)
    finished = _finished(folder)
    if not finished:
        raise InputError(f"{folder.packs}: no prepared packs; run `python -m jobs.prepare` with this config first")
    return PackedDataset.open(finished[0])


def check_unchanged(config: Config) -> None:
    """Refuse source files that are not those the run was prepared from.

    Raises:
        InputError: names the first that differs.
    """
    prepared = [file["sha256"] for file in find(config).manifest["sources"]]
    files = find_files(config)
    if len(files) != len(prepared):
        raise InputError(f"data.sources: {len(files)} files, {len(prepared)} when prepared; take another run.name")
    for file, digest, expected in zip(files, sources.digests(files), prepared, strict=True):
        if digest != expected:
            raise InputError(f"data.sources: {file.uri} changed since the run was prepared; take another run.name")


def find_files(config: Config) -> list[SourceFile]:
    """The files of `data.sources`.

    Raises:
        InputError: one is missing, empty, unreadable or of an unknown kind.
    """
    return sources.find_files(config.data.sources, config.run.storage / "sources")


def prepare(config: Config, start_ray: Callable[[], None]) -> Prepared:
    """Read, check, split, tokenise and pack the sources of a run; does nothing if that was done before.

    `start_ray` is called once there is work for it.

    Raises:
        InputError: a source or the base model's chat template can't be used, or too many rows; names file, row, reason.
    """
    files = find_files(config)
    model = base.resolve(config)
    renderer = renderer_of(model, config.data.system_prompt)
    folder = run.RunFolder.of(config)
    run.check_pinned(config, *SECTIONS)
    source_digests = sources.digests(files)
    digest = _digest(config, renderer.contract, source_digests)
    target = folder.packs / digest[:16]
    if (target / MANIFEST).is_file():
        return Prepared(PackedDataset.open(target), already_done=True)
    if _finished(folder):
        raise InputError(f"{folder.packs} was made from other source files or another base; take another run.name")
    chunks = sources.chunks(files)
    check_first_rows(files, chunks, config.data)
    start_ray()
    with run.complete_folder(target) as unfinished:
        made = _make(config, files, chunks, renderer, unfinished)
        base.remember(config, model)
        names = [file.name for file in files]
        manifest = {
            "digest": digest,
            "contract_digest": renderer.contract.digest,
            "pack_tokens": config.data.pack_tokens,
            "sources": [{"name": n, "sha256": s} for n, s in zip(names, source_digests, strict=True)],
            **made,
        }
        run.write_json(unfinished / MANIFEST, manifest)
    return Prepared(PackedDataset.open(target), already_done=False)


def _make(
    config: Config,
    files: list[SourceFile],
    chunks: list[Chunk],
    renderer: Renderer,
    unfinished: Path,
) -> dict[str, Any]:
    """Both passes; returns the counts."""
    folder = run.RunFolder.of(config)
    spool = unfinished / "spool"
    spool.mkdir()
    num_shards = -(-sum(file.num_text_bytes for file in files) // SHARD_BYTES)
    ingested = _ingest(config, files, chunks, renderer, unfinished, spool, num_shards)
    num_read = sum(done.num_read for done in ingested)
    reasons = sum((done.reasons for done in ingested), Counter[str]())
    check_bad_rows(files, config.data, reasons, num_read, [row for done in ingested for row in done.bad])

    held_out = hold_out(spool, [file.uri for file in files], unfinished)
    _check_held_out(config.data, held_out, num_read, _fates(ingested))
    similarity = config.data.near_duplicates
    index = None if similarity is None else HeldOut(held_out.signatures_NP, similarity)
    assembled = _assemble(config, files, unfinished, spool, num_shards, index)
    fates = ledger.total([_fates(ingested), held_out.fates, *(done.fates for done in assembled)])
    ledger.check_complete(fates, num_read)
    if not fates["trained"]:
        raise InputError("data.sources: no row is left to train on")
    shutil.rmtree(spool)

    run.pin(config, *SECTIONS)
    (unfinished / TEST_ROWS).replace(folder.test)
    (unfinished / VALIDATION_ROWS).replace(folder.validation)
    renderer.contract.save(folder.contract)
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
    report.write(unfinished, counts, statistics, files, config.data.pack_tokens, renderer)
    return counts


def _check_held_out(data: DataConfig, held_out: HoldOut, num_read: int, fates: dict[str, int]) -> None:
    """Some rows must be left for each use."""
    for use, fraction in (("test", data.test_fraction), ("validation", data.validation_fraction)):
        if fraction and not held_out.fates[use]:
            others = ", ".join(f"{count} {fate}" for fate, count in fates.items() if count)
            raise InputError(
                f"data.{use}_fraction={fraction}: no row is held out of {num_read} read"
                f"{f' ({others})' if others else ''}; give more rows"
            )


_TOTALS = ("num_examples", "num_packs", "num_tokens", "num_computed_tokens", "num_trained_tokens")


def _ingest(
    config: Config,
    files: list[SourceFile],
    chunks: list[Chunk],
    renderer: Renderer,
    folder: Path,
    spool: Path,
    num_shards: int,
) -> list[Ingested]:
    """The first pass, over chunks of files."""
    spread = find_spread_groups(chunks, config.data, num_shards)
    job = Ingest(
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

    return run_each(len(chunks), lambda number: ingest(chunks[number], job))


def _assemble(
    config: Config, files: list[SourceFile], folder: Path, spool: Path, num_shards: int, held_out: HeldOut | None
) -> list[Assembled]:
    """The second pass, over shards."""
    uris = tuple(file.uri for file in files)
    job = Assemble(folder, spool, uris, config.data.pack_tokens, config.run.seed)
    shared = ray.put(held_out)

    return run_each(num_shards, lambda number: assemble(number, job, ray.get(shared)))


def _fates(ingested: Sequence[Ingested]) -> dict[str, int]:
    return ledger.total(done.fates for done in ingested)


def _finished(folder: run.RunFolder) -> list[Path]:
    """Complete folders of packs; what a killed run left behind has a name that begins with a dot."""
    return sorted(manifest.parent for manifest in folder.packs.glob(f"[!.]*/{MANIFEST}"))


def _digest(config: Config, contract: Contract, source_digests: Sequence[str]) -> str:
    """The digest that names the packs, from everything that decides their content."""
    options = config.data.model_dump(mode="json", exclude={"sources"})
    # Where a source lies does not matter, what it holds and how it is read does.
    readings = [source.model_dump(mode="json", exclude={"path"}) for source in config.data.sources]
    content = [PACKING_VERSION, list(source_digests), readings, contract.digest, options, config.run.seed]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
