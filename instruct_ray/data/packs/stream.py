"""Plan -> a Ray Data stream of packs for one rank. It can start at any step without reading earlier ones."""

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

# A task fetches this many row groups of each slot. The first and the last are used in part and read by two tasks.
ROW_GROUPS_PER_TASK = 4
# Fetching packs is light work. With a fraction of a CPU it can't be starved by training workers that hold the rest.
FETCH_CPUS = 0.1


def stream_packs(path: Path, plan: BatchPlan, start_step: int, rank: int, world_size: int) -> Iterator[list[Pack]]:
    """Stream a rank's packs step by step, in the order of the plan.

    Ray Data tasks read ahead of training. Reading starts before this returns, so it overlaps with other setup.
    """
    steps = _read_steps(path, plan, start_step, rank, world_size)
    executor = ThreadPoolExecutor(max_workers=1)
    first_step = executor.submit(next, steps, None)
    executor.shutdown(wait=False)
    return _prefetch_first(first_step, steps)


def _prefetch_first(first_step: Future[list[Pack] | None], later_steps: Iterator[list[Pack]]) -> Iterator[list[Pack]]:
    packs = first_step.result()
    if packs is not None:
        yield packs
        yield from later_steps


def _read_steps(path: Path, plan: BatchPlan, start_step: int, rank: int, world_size: int) -> Iterator[list[Pack]]:
    dataset = PackedDataset.open(path)
    steps_per_task = ROW_GROUPS_PER_TASK * packs_per_row_group(dataset.manifest["pack_tokens"])
    task_starts = [{"step": step} for step in range(start_step, plan.num_steps, steps_per_task)]
    if not task_starts:
        return

    def fetch(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        steps = range(row["step"], min(row["step"] + steps_per_task, plan.num_steps))
        indices_by_step = [plan.rank_packs(step, rank, world_size) for step in steps]
        indices = (index for step_indices in indices_by_step for index in step_indices if index is not None)
        packs = iter(PackedDataset.open(path).take(indices))
        for step_indices in indices_by_step:
            yield {"packs": to_ipc([empty_pack() if index is None else next(packs) for index in step_indices])}

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    steps = ray.data.from_items(task_starts, override_num_blocks=len(task_starts)).flat_map(
        fetch, num_cpus=FETCH_CPUS, compute=TaskPoolStrategy(size=1)
    )
    for batch in steps.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2):
        yield from_ipc(batch["packs"][0].as_buffer())


def to_ipc(packs: list[Pack]) -> bytes:
    """Serialize the packs of a step, so that one row of the stream is one step."""
    sink = pa.BufferOutputStream()
    table = to_table(packs)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_ipc(content: pa.Buffer) -> list[Pack]:
    """Deserialize the packs of a step."""
    with pa.ipc.open_stream(content) as reader:
        return from_table(reader.read_all())
