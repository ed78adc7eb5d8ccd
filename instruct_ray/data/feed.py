"""Plan -> a Ray Data stream of packs for one rank, starting at any step without reading what came before."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import ray.data
from ray.data import TaskPoolStrategy

from instruct_ray.data.dataset import SCHEMA, PackedDataset
from instruct_ray.data.packing import Pack, empty_pack
from instruct_ray.data.plan import Plan

PACKS_PER_BLOCK = 32
NO_PACK = -1
# Fetching packs is light: a fraction of a CPU, so that training workers can't starve it by holding the others.
FETCH_CPUS = 0.1


def stream(path: Path, plan: Plan, start_step: int, rank: int, world_size: int) -> Iterator[Pack]:
    """Yield a rank's packs in the order of the plan, read ahead of the training step by Ray Data tasks."""
    indices = [NO_PACK if index is None else index for index in plan.stream(start_step, rank, world_size)]
    if not indices:
        return
    items = [{"index": index} for index in indices]

    def fetch(table: pa.Table) -> pa.Table:
        dataset = PackedDataset.open(path)
        packs = [empty_pack() if i == NO_PACK else dataset.read(i) for i in table["index"].to_pylist()]
        return pa.Table.from_pylist(packs, schema=SCHEMA)

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    num_blocks = -(-len(items) // PACKS_PER_BLOCK)
    packs = ray.data.from_items(items, override_num_blocks=num_blocks).map_batches(
        fetch, batch_size=None, batch_format="pyarrow", num_cpus=FETCH_CPUS, compute=TaskPoolStrategy(size=1)
    )
    for batch in packs.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2):
        yield from batch.to_pylist()
