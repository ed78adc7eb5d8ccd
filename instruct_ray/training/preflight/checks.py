"""Before anything is trained: can this run be placed, does it fit into memory and disk, and does every node see its
storage? What can't work is refused, with what would."""

import shutil
from collections.abc import Sequence

import ray

from instruct_ray.errors import InputError
from instruct_ray.training.preflight.fitting_memory import check_memory
from instruct_ray.training.preflight.memory import checkpoint_bytes, gib, model_bytes
from instruct_ray.training.preflight.nodes import Facts, await_place, look
from instruct_ray.training.preflight.placement import Node, cpus_of, shortage
from instruct_ray.training.preflight.report import Finding, Job


def refuse(findings: Sequence[Finding]) -> None:
    """
    Raises:
        InputError: something was refused; names all of it.
    """
    refused = [f"{finding.subject}: {finding.said}" for finding in findings if finding.verdict == "refused"]
    if refused:
        raise InputError("; ".join(refused))


def check(job: Job) -> list[Finding]:
    """Look at the cluster that this process is connected to."""
    nodes, placed = await_place(job.train)
    if not placed:
        return [Finding("placement", "refused", shortage(nodes, job.train))]
    try:
        facts = look(nodes, job.run.parent)
    except OSError as error:
        return [Finding("storage", "refused", f"run.storage: {job.run.parent} can't be written: {error.strerror}")]
    used = [each for each in facts if each.node.id in placed and each.memory]
    return [
        _placement(job, nodes, placed),
        _storage(job, facts),
        *(check_memory(job, used, placed) if used else ()),
        _disk(job),
        _local_disk(job, used, placed),
    ]


def _placement(job: Job, nodes: Sequence[Node], placed: dict[str, int]) -> Finding:
    train = job.train
    others = cpus_of(train) - train.min_workers * train.cpus_per_worker
    said = f"{train.min_workers} worker(s) on {len(placed)} of {len(nodes)} node(s), {others} CPU beside them"
    free = ray.available_resources()
    if free.get("CPU", 0) < cpus_of(train) or (train.use_gpu and free.get("GPU", 0) < train.min_workers):
        return Finding("placement", "note", f"{said}; other work holds what they need, they start when it ends")
    return Finding("placement", "fine", said)


def _storage(job: Job, facts: Sequence[Facts]) -> Finding:
    problems = [f"node {each.node.name} {each.problem}" for each in facts if each.problem]
    if problems:
        return Finding("storage", "refused", f"run.storage: {'; '.join(problems)}")
    return Finding("storage", "fine", f"{job.run.parent} is written and read by all {len(facts)} node(s)")


def _disk(job: Job) -> Finding:
    """Retention deletes only behind the next one, and the model is written twice before it is in place."""
    shapes = job.shaper.shapes(job.lora, job.train)
    checkpoint, model = (
        checkpoint_bytes(shapes, job.train),
        model_bytes(shapes, job.train, is_adapter=job.lora is not None),
    )
    num = job.train.num_checkpoints + 1
    taken = sum(path.stat().st_size for path in job.run.glob("train/checkpoint-*/**/*") if path.is_file())
    needed = max(0, num * checkpoint - taken) + 2 * model
    free = shutil.disk_usage(job.run.parent).free
    said = (
        f"{num} checkpoint(s) of {gib(checkpoint)} and a model of {gib(model)} take {gib(needed)} of the "
        f"{gib(free)} free under {job.run.parent}"
    )
    if needed > free:
        return Finding("disk", "refused", f"{said}; free some, or lower train.num_checkpoints")
    return Finding("disk", "fine", said)


def _local_disk(job: Job, facts: Sequence[Facts], placed: dict[str, int]) -> Finding:
    """Shards wait on the node's own disk until they have travelled."""
    checkpoint = checkpoint_bytes(job.shaper.shapes(job.lora, job.train), job.train)
    for each in facts:
        needed = checkpoint * placed[each.node.id] // job.train.min_workers
        if not each.problem and needed > each.local_disk:
            said = f"node {each.node.name} has {gib(each.local_disk)} for Ray's files, its shards take {gib(needed)}"
            return Finding("local disk", "refused", f"{said}; start Ray there with a larger --temp-dir")
    return Finding("local disk", "fine", f"a checkpoint's {gib(checkpoint)} fit beside Ray's files until they travel")
