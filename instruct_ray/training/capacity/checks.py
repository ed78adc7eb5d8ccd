"""Before anything is trained: can this run be placed, does it fit into memory and disk, and does every node see its
storage? What can't work is refused, with what would."""

import shutil
from collections.abc import Sequence

import ray

from instruct_ray.errors import InputError
from instruct_ray.training.capacity.findings import CheckInput, Finding
from instruct_ray.training.capacity.memory import checkpoint_bytes, format_gib, model_bytes
from instruct_ray.training.capacity.memory_check import check_memory
from instruct_ray.training.capacity.nodes import NodeReport, probe_nodes, wait_for_placement
from instruct_ray.training.capacity.placement import Node, describe_shortage, required_cpus


def raise_if_failed(findings: Sequence[Finding]) -> None:
    """
    Raises:
        InputError: something was refused; names all of it.
    """
    refused = [f"{finding.check}: {finding.message}" for finding in findings if finding.verdict == "error"]
    if refused:
        raise InputError("; ".join(refused))


def check_capacity(run: CheckInput) -> list[Finding]:
    """Look at the cluster that this process is connected to."""
    nodes, placed = wait_for_placement(run.train)
    if not placed:
        return [Finding("placement", "error", describe_shortage(nodes, run.train))]
    try:
        facts = probe_nodes(nodes, run.run.parent)
    except OSError as error:
        return [Finding("storage", "error", f"run.storage: {run.run.parent} can't be written: {error.strerror}")]
    used = [each for each in facts if each.node.id in placed and each.memory]
    return [
        _placement(run, nodes, placed),
        _storage(run, facts),
        *(check_memory(run, used, placed) if used else ()),
        _disk(run),
        _local_disk(run, used, placed),
    ]


def _placement(run: CheckInput, nodes: Sequence[Node], placed: dict[str, int]) -> Finding:
    train = run.train
    others = required_cpus(train) - train.min_workers * train.cpus_per_worker
    message = f"{train.min_workers} worker(s) on {len(placed)} of {len(nodes)} node(s), {others} CPU beside them"
    free = ray.available_resources()
    if free.get("CPU", 0) < required_cpus(train) or (train.use_gpu and free.get("GPU", 0) < train.min_workers):
        return Finding("placement", "warning", f"{message}; other work holds what they need, they start when it ends")
    return Finding("placement", "ok", message)


def _storage(run: CheckInput, facts: Sequence[NodeReport]) -> Finding:
    problems = [f"node {each.node.name} {each.problem}" for each in facts if each.problem]
    if problems:
        return Finding("storage", "error", f"run.storage: {'; '.join(problems)}")
    return Finding("storage", "ok", f"{run.run.parent} is written and read by all {len(facts)} node(s)")


def _disk(run: CheckInput) -> Finding:
    """Retention deletes only behind the next one, and the model is written twice before it is in place."""
    model_size = run.sizer.size_of(run.lora, run.train)
    checkpoint, model = (
        checkpoint_bytes(model_size, run.train),
        model_bytes(model_size, run.train, is_adapter=run.lora is not None),
    )
    num = run.train.num_checkpoints + 1
    taken = sum(path.stat().st_size for path in run.run.glob("train/checkpoint-*/**/*") if path.is_file())
    needed = max(0, num * checkpoint - taken) + 2 * model
    free = shutil.disk_usage(run.run.parent).free
    message = (
        f"{num} checkpoint(s) of {format_gib(checkpoint)} and a model of {format_gib(model)} take {format_gib(needed)} of the "
        f"{format_gib(free)} free under {run.run.parent}"
    )
    if needed > free:
        return Finding("disk", "error", f"{message}; free some, or lower train.num_checkpoints")
    return Finding("disk", "ok", message)


def _local_disk(run: CheckInput, facts: Sequence[NodeReport], placed: dict[str, int]) -> Finding:
    """Shards wait on the node's own disk until they have travelled."""
    checkpoint = checkpoint_bytes(run.sizer.size_of(run.lora, run.train), run.train)
    for each in facts:
        needed = checkpoint * placed[each.node.id] // run.train.min_workers
        if not each.problem and needed > each.local_disk:
            message = f"node {each.node.name} has {format_gib(each.local_disk)} for Ray's files, its shards take {format_gib(needed)}"
            return Finding("local disk", "error", f"{message}; start Ray there with a larger --temp-dir")
    return Finding(
        "local disk", "ok", f"a checkpoint's {format_gib(checkpoint)} fit beside Ray's files until they travel"
    )
