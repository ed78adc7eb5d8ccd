"""A file of triples and a model -> a folder of answers, without an endpoint: one line for every row, in input order.

Parts of the rows are answered by Ray Data actors and committed one by one: a killed run continues behind what it has.
"""

import hashlib
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ray.data
from pydantic import BaseModel, ConfigDict
from ray.data import Dataset
from ray.util.annotations import RayDeprecationWarning

from instruct_ray.config.data import DataConfig
from instruct_ray.config.schema import Config, ServingConfig
from instruct_ray.data.ray_tasks import map_tasks
from instruct_ray.data.rendering.renderer import load_renderer
from instruct_ray.data.sources.files import Chunk, SourceFile, file_digests, find_source_files, split_into_chunks
from instruct_ray.data.sources.readers import row_number
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_json
from instruct_ray.inference.loading import model_digest
from instruct_ray.inference.offline.inputs import BATCH_BYTES, BATCH_ROWS, read_input_rows, split_into_batches
from instruct_ray.inference.offline.worker import GenerationWorker
from instruct_ray.run.lock import run_lock
from instruct_ray.runtime_env import worker_runtime_env

# In the output folder, hidden from those who read the folder as rows.
MANIFEST_FILE = ".generate.json"
# Rows looked at before anything starts, in search of one that can be answered.
MAX_FIRST_ROWS = 1000
# How often an engine that dies is started again, and a part tried again.
MAX_ENGINE_FAILURES = 3


class OutputSpec(BaseModel):
    """What decides the answers in a folder."""

    model_config = ConfigDict(frozen=True)

    model_digest: str
    input_digest: str
    """Over the files' bytes and how they are read."""
    max_new_tokens: int
    part_limits: tuple[int, int] = (BATCH_ROWS, BATCH_BYTES)


class GenerationManifest(BaseModel):
    """What the output folder is made of."""

    model_config = ConfigDict(frozen=True)

    request: OutputSpec
    part_rows: dict[str, int] | None = None
    """Rows of every part by its name; None before they are counted."""
    counts: dict[str, int] | None = None
    """Rows by finish reason, or by why there is no answer; None before all are answered."""
    num_rows: int = 0


def generate(
    config: Config, model: Path, output: Path, status: Callable[[str], None], start_ray: Callable[[], None]
) -> tuple[GenerationManifest, bool]:
    """Answer every row of `data.sources` with the model in a folder; the second value tells if that was done before.

    Answers are greedy, `serving` says on how many engines of which size and with how many tokens at most. `output` is a
    folder that every node sees. `start_ray` is called once the input is known to be good.

    Raises:
        InputError: the model or a file can't be used, or `output` holds answers of another model or input.
    """
    load_renderer(model)
    files = find_source_files(config.data.sources, config.run.storage / "sources")
    request = OutputSpec(
        model_digest=model_digest(model),
        input_digest=_input_digest(files, config.data),
        max_new_tokens=config.serving.max_new_tokens,
    )
    found = _load_manifest(output, request)
    if found.counts is not None:
        return found, True
    chunks = split_into_chunks(files)
    _check_first_rows(files, chunks, config.data)
    with run_lock(output):
        # Another job may have been here since.
        found = _load_manifest(output, request)
        _remove_unfinished(output)
        atomic_write_json(output / MANIFEST_FILE, found.model_dump(mode="json"))
        start_ray()
        return _generate(config, model, output, status, chunks, found), False


def _generate(
    config: Config,
    model: Path,
    output: Path,
    status: Callable[[str], None],
    chunks: Sequence[Chunk],
    found: GenerationManifest,
) -> GenerationManifest:
    data, part_rows = config.data, found.part_rows
    if part_rows is None:
        status("counting rows")
        counted = map_tasks(
            len(chunks), lambda number: [(p.name, len(p.rows)) for p in split_into_batches(chunks[number], data)]
        )
        part_rows = dict(name_and_rows for each in counted for name_and_rows in each)
        found = found.model_copy(update={"part_rows": part_rows, "num_rows": sum(part_rows.values())})
        atomic_write_json(output / MANIFEST_FILE, found.model_dump(mode="json"))
    missing = {name for name in part_rows if not (output / name).is_file()}
    if missing:
        _answer(config, model, output, status, chunks, missing, found)
    done = found.model_copy(update={"counts": _counts(output, part_rows)})
    atomic_write_json(output / MANIFEST_FILE, done.model_dump(mode="json"))
    return done


def _answer(
    config: Config,
    model: Path,
    output: Path,
    status: Callable[[str], None],
    chunks: Sequence[Chunk],
    missing: set[str],
    found: GenerationManifest,
) -> None:
    """Stream the missing parts through the engines."""
    assert found.part_rows is not None, "counted before"
    serving, data = config.serving, config.data
    needed = sorted({int(name.split("-")[1]) for name in missing})
    work = ray.data.from_items([{"chunk": number} for number in needed], override_num_blocks=len(needed))
    # A part is what an engine takes at a time, however many of them come out of one chunk.
    work = work.flat_map(
        lambda row: [p.dump() for p in split_into_batches(chunks[row["chunk"]], data) if p.name in missing]
    )
    work = _through_engines(work.repartition(target_num_rows_per_block=1), model, output, serving)
    num_before = found.num_rows - sum(found.part_rows[name] for name in missing)
    status(f"{num_before:,}/{found.num_rows:,} rows  loading the model")
    num_done, began = 0, time.monotonic()
    for answered in work.iter_rows():
        num_done += answered["num_rows"]
        rate = num_done / (time.monotonic() - began)
        left = (found.num_rows - num_before - num_done) / rate
        status(f"{num_before + num_done:,}/{found.num_rows:,} rows  {rate:,.1f} rows/s  {left:,.0f} s to go")


def _through_engines(work: Dataset, model: Path, output: Path, serving: ServingConfig) -> Dataset:
    with warnings.catch_warnings():
        # How often an actor restarts has no other name yet, and without a limit a model that does not fit restarts for
        # ever.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return work.map(
            GenerationWorker,
            fn_constructor_args=(model, output, serving.max_batch_size, serving.max_new_tokens),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=serving.num_replicas),
            num_cpus=serving.num_cpus,
            num_gpus=serving.num_gpus,
            runtime_env=worker_runtime_env(use_gpu=serving.num_gpus > 0),
            max_restarts=MAX_ENGINE_FAILURES,
            max_task_retries=MAX_ENGINE_FAILURES,
        )


def _load_manifest(output: Path, request: OutputSpec) -> GenerationManifest:
    """What the output folder holds already.

    Raises:
        InputError: answers to something else, or no answers at all.
    """
    if ":/" in str(output):
        raise InputError(f"--output: {output}: needs a folder that every node sees under the same path, not a URI")
    record = output / MANIFEST_FILE
    if not record.is_file():
        if output.exists() and not (output.is_dir() and all(file.name.startswith(".") for file in output.iterdir())):
            raise InputError(f"{output}: holds other files than answers; take another --output")
        return GenerationManifest(request=request)
    found = GenerationManifest.model_validate_json(record.read_text())
    before, now = found.request.model_dump(), request.model_dump()
    changed = [f"{key} was {_short(before[key])}, now {_short(now[key])}" for key in now if before[key] != now[key]]
    if changed:
        raise InputError(f"{output}: holds answers to another request ({'; '.join(changed)}); take another --output")
    return found


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def _input_digest(files: Sequence[SourceFile], data: DataConfig) -> str:
    names = [file.uri for file in files]
    readings = [source.model_dump(mode="json") for source in data.sources]
    content = [names, file_digests(files), readings, data.max_row_bytes]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_first_rows(files: Sequence[SourceFile], chunks: Sequence[Chunk], data: DataConfig) -> None:
    """Refuse an input of whose first rows none can be read: most likely its columns have other names."""
    rows = ((chunk.file, question) for chunk in chunks for question in read_input_rows(chunk, data))
    unread = []
    for file, question in islice(rows, MAX_FIRST_ROWS):
        if question.triple is not None:
            return
        unread.append((file, question))
    if not unread:
        raise InputError(f"data.sources: no rows in {files[0].uri}")
    file, question = unread[0]
    raise InputError(
        f"data.sources: none of the first {len(unread)} rows can be read; {file.uri}: row "
        f"{row_number(file, question.offset)} {question.detail}"
    )


def _remove_unfinished(output: Path) -> None:
    """Remove what a killed run was writing."""
    for unfinished in output.glob(".part-*"):
        unfinished.unlink()


def _counts(output: Path, part_rows: dict[str, int]) -> dict[str, int]:
    """Rows by finish reason, or by why there is no answer.

    Raises:
        RuntimeError: a part is missing or holds more or fewer rows than were read.
    """
    counts: Counter[str] = Counter()
    for name, num_rows in part_rows.items():
        fates = list(_fates(output / name))
        if len(fates) != num_rows:
            raise RuntimeError(f"{output / name} has {len(fates)} lines for {num_rows} rows")
        counts.update(fates)
    return dict(counts)


def _fates(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            values = json.loads(line)
            yield values["finish_reason"] or values["reason"]
