"""Offline generation: a file of rows and a model folder -> a folder of answers, one line per row, in input order.

Ray Data actors generate the answers batch by batch and commit each batch as a part file. A run that was killed resumes
with the parts that are missing.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import ray.data
from ray.data import Dataset
from ray.util.annotations import RayDeprecationWarning

from instruct_ray.config.data import DataConfig
from instruct_ray.config.schema import Config
from instruct_ray.data.ray_tasks import map_tasks
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.data.sources.files import file_digests, find_source_files, split_into_chunks
from instruct_ray.data.sources.readers import row_number
from instruct_ray.data.sources.source_file import Chunk, SourceFile
from instruct_ray.errors import InputError
from instruct_ray.inference.loading import check_loadable, model_digest
from instruct_ray.inference.offline.inputs import read_input_rows, split_into_batches
from instruct_ray.inference.offline.manifest import GenerationManifest, OutputSpec, count_results, load_manifest
from instruct_ray.inference.offline.worker import GenerationWorker
from instruct_ray.run.lock import run_lock
from instruct_ray.runtime_env import worker_runtime_env

# Rows that are checked before Ray starts; if none of them can be read, the input is rejected.
MAX_FIRST_ROWS = 1000
# How often a worker that dies is restarted, and its batch retried.
MAX_WORKER_FAILURES = 3


@dataclass(frozen=True)
class _Job:
    """One call of `generate`, with its input split into chunks."""

    config: Config
    model_dir: Path
    output_dir: Path
    chunks: Sequence[Chunk]
    status: Callable[[str], None]


def generate(
    config: Config, model_dir: Path, output_dir: Path, status: Callable[[str], None], start_ray: Callable[[], None]
) -> tuple[GenerationManifest, bool]:
    """Generate an answer for every row of `data.sources` by greedy decoding.

    Args:
        config: `serving` sets the number of engines, their size and the maximum number of new tokens.
        model_dir: a model folder, or an adapter folder.
        output_dir: a folder that every node sees under the same path.
        status: called with progress messages.
        start_ray: called once the model and the input are known to be usable.

    Returns:
        The manifest of the output, and whether the output was already complete.

    Raises:
        InputError: the model or a file can't be used, or `output_dir` holds the answers of another model or input.
    """
    # Both raise an InputError if the folder holds no usable model.
    contract = load_renderer(model_dir).contract
    check_loadable(model_dir)
    if config.serving.only_labels and contract.labels is None:
        raise InputError(f"serving.only_labels: the contract in {model_dir} lists no labels; tune it with data.labels")
    files = find_source_files(config.data.sources, config.run.storage / "sources")
    spec = OutputSpec(
        model_digest=model_digest(model_dir),
        input_digest=_input_digest(files, config.data),
        max_new_tokens=config.serving.max_new_tokens,
        only_labels=config.serving.only_labels,
    )
    manifest = load_manifest(output_dir, spec)
    if manifest.counts is not None:
        return manifest, True
    job = _Job(config, model_dir, output_dir, split_into_chunks(files), status)
    _check_first_rows(files, job)
    with run_lock(output_dir):
        # Loaded again: until here, another process could have held the lock.
        manifest = load_manifest(output_dir, spec)
        _remove_unfinished_parts(output_dir)
        manifest.save(output_dir)
        start_ray()
        return _run(job, manifest), False


def _run(job: _Job, manifest: GenerationManifest) -> GenerationManifest:
    """Generate the missing parts and complete the manifest."""
    part_rows = manifest.part_rows
    if part_rows is None:
        job.status("counting rows")
        part_rows = _count_part_rows(job)
        manifest = manifest.model_copy(update={"part_rows": part_rows, "num_rows": sum(part_rows.values())})
        manifest.save(job.output_dir)
    missing_parts = {name for name in part_rows if not (job.output_dir / name).is_file()}
    if missing_parts:
        num_missing = sum(part_rows[name] for name in missing_parts)
        _report_progress(job, _generate_parts(job, missing_parts), manifest.num_rows - num_missing, manifest.num_rows)
    manifest = manifest.model_copy(update={"counts": count_results(job.output_dir, part_rows)})
    manifest.save(job.output_dir)
    return manifest


def _count_part_rows(job: _Job) -> dict[str, int]:
    """Count the rows of each part, one Ray task per chunk."""
    # Local variables, because Ray would pickle all of `job` with the task.
    chunks, data = job.chunks, job.config.data

    def count(chunk_number: int) -> list[tuple[str, int]]:
        return [(batch.part_name, len(batch.rows)) for batch in split_into_batches(chunks[chunk_number], data)]

    return {name: num_rows for counts in map_tasks(len(chunks), count) for name, num_rows in counts}


def _generate_parts(job: _Job, part_names: set[str]) -> Iterable[int]:
    """Generate parts with a pool of workers; yields the number of rows of each part as it is committed."""
    chunks, data = job.chunks, job.config.data
    chunk_numbers = sorted({int(name.split("-")[1]) for name in part_names})
    dataset = ray.data.from_items(
        [{"chunk": number} for number in chunk_numbers], override_num_blocks=len(chunk_numbers)
    )
    batches = dataset.flat_map(
        lambda row: [b.dump() for b in split_into_batches(chunks[row["chunk"]], data) if b.part_name in part_names]
    )
    # One batch per block, so that the batches of a chunk spread over all workers.
    parts = _map_with_workers(batches.repartition(target_num_rows_per_block=1), job)
    return (int(part["num_rows"]) for part in parts.iter_rows())


def _map_with_workers(batches: Dataset, job: _Job) -> Dataset:
    serving = job.config.serving
    with warnings.catch_warnings():
        # Ray has no other option to limit restarts yet. Without a limit, a model that does not fit into memory would
        # be loaded again and again.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return batches.map(
            GenerationWorker,
            fn_constructor_args=(job.model_dir, job.output_dir, serving),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=serving.num_replicas),
            num_cpus=serving.num_cpus,
            num_gpus=serving.num_gpus,
            label_selector=serving.label_selector,
            runtime_env=worker_runtime_env(use_gpu=serving.num_gpus > 0),
            max_restarts=MAX_WORKER_FAILURES,
            max_task_retries=MAX_WORKER_FAILURES,
        )


def _report_progress(job: _Job, part_sizes: Iterable[int], num_before: int, num_rows: int) -> None:
    """Consume the part sizes as they come and show the progress."""
    job.status(f"{num_before:,}/{num_rows:,} rows  loading the model")
    num_new, start = 0, time.monotonic()
    for part_size in part_sizes:
        num_new += part_size
        rows_per_second = num_new / (time.monotonic() - start)
        seconds_left = (num_rows - num_before - num_new) / rows_per_second
        job.status(
            f"{num_before + num_new:,}/{num_rows:,} rows  {rows_per_second:,.1f} rows/s  {seconds_left:,.0f} s left"
        )


def _input_digest(files: Sequence[SourceFile], data: DataConfig) -> str:
    uris = [file.uri for file in files]
    sources = [source.model_dump(mode="json") for source in data.sources]
    content = [uris, file_digests(files), sources, data.max_row_bytes]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_first_rows(files: Sequence[SourceFile], job: _Job) -> None:
    """Reject an input if none of its first rows can be read: most likely, its columns have other names.

    Raises:
        InputError: describes the first row.
    """
    rows = ((chunk.file, row) for chunk in job.chunks for row in read_input_rows(chunk, job.config.data))
    unreadable = []
    for file, row in islice(rows, MAX_FIRST_ROWS):
        if row.triple is not None:
            return
        unreadable.append((file, row))
    if not unreadable:
        raise InputError(f"data.sources: no rows in {files[0].uri}")
    file, row = unreadable[0]
    raise InputError(
        f"data.sources: none of the first {len(unreadable)} rows can be read; {file.uri}: row "
        f"{row_number(file, row.offset)} {row.detail}"
    )


def _remove_unfinished_parts(output_dir: Path) -> None:
    """Remove the temporary files of workers that were killed while writing."""
    for path in output_dir.glob(".part-*"):
        path.unlink()
