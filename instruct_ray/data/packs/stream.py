"""Plan -> a Ray Data stream of packs for one rank, starting at any step without reading what came before."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import TaskPoolStrategy

from instruct_ray.data.packs.dataset import PackedDataset, from_table, packs_per_row_group, to_table
from instruct_ray.data.packs.plan import BatchPlan
from instruct_ray.data.packs.tree import Pack, empty_pack

# A task fetches this many row groups of each lane: the two at its ends are read in part, and by the next task again.
ROW_GROUPS_PER_TASK = 4
# Fetching packs is light: a fraction of a CPU, so that training workers can't starve it by holding the others.
FETCH_CPUS = 0.1


def stream_packs(path: Path, plan: BatchPlan, start_step: int, rank: int, world_size: int) -> Iterator[list[Pack]]:
    """A rank's packs step by step in the order of the plan, read ahead of training by Ray Data tasks; the first are on
    their way when this returns, so that other things can be made ready meanwhile."""
    packs = _read_steps(path, plan, start_step, rank, world_size)
    executor = ThreadPoolExecutor(max_workers=1)
    first = executor.submit(next, packs, None)
    executor.shutdown(wait=False)
    return _prefetch_first(first, packs)


def _prefetch_first(first: Future[list[Pack] | None], others: Iterator[list[Pack]]) -> Iterator[list[Pack]]:
    packs = first.result()
    if packs is not None:
        yield packs
        yield from others


def _read_steps(path: Path, plan: BatchPlan, start_step: int, rank: int, world_size: int) -> Iterator[list[Pack]]:
    dataset = PackedDataset.open(path)
    steps_per_task = ROW_GROUPS_PER_TASK * packs_per_row_group(dataset.manifest["pack_tokens"])
    starts = [{"step": step} for step in range(start_step, plan.num_steps, steps_per_task)]
    if not starts:
        return

    def fetch(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        steps = range(row["step"], min(row["step"] + steps_per_task, plan.num_steps))
        shares = [plan.rank_packs(step, rank, world_size) for step in steps]
        packs = iter(PackedDataset.open(path).take(index for share in shares for index in share if index is not None))
        for share in shares:
            yield {"packs": to_ipc([empty_pack() if index is None else next(packs) for index in share])}

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    steps = ray.data.from_items(starts, override_num_blocks=len(starts)).flat_map(
        fetch, num_cpus=FETCH_CPUS, compute=TaskPoolStrategy(size=1)
    )
    for batch in steps.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2):
        yield from_ipc(batch["packs"][0].as_buffer())


def to_ipc(packs: list[Pack]) -> bytes:
    """A step's packs as one value, so that a row of the stream is a step."""
    sink = pa.BufferOutputStream()
    table = to_table(packs)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_ipc(content: pa.Buffer) -> list[Pack]:
    """The inverse of `to_ipc`."""
    with pa.ipc.open_stream(content) as reader:
        return from_table(reader.read_all())
