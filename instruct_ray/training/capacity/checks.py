"""driver: checks before training that the run can be placed, fits into memory and disk, and reaches its storage."""

import shutil
from collections.abc import Iterator, Sequence

import ray

from instruct_ray.errors import InputError
from instruct_ray.training.capacity.findings import CheckInput, Finding
from instruct_ray.training.capacity.memory import checkpoint_bytes, format_gib, model_bytes
from instruct_ray.training.capacity.memory_check import check_memory
from instruct_ray.training.capacity.nodes import NodeReport, probe_nodes, wait_for_placement
from instruct_ray.training.capacity.placement import Node, describe_shortage, required_cpus
from instruct_ray.training.model.toolchain import INSTALL_COMPILERS


def raise_if_failed(findings: Sequence[Finding]) -> None:
    """Stop if a check failed.

    Raises:
        InputError: at least one finding is an error; the message names all of them.
    """
    errors = [f"{finding.check}: {finding.message}" for finding in findings if finding.verdict == "error"]
    if errors:
        raise InputError("; ".join(errors))


def check_capacity(inputs: CheckInput) -> list[Finding]:
    """Check the cluster that this process is connected to."""
    nodes, placement = wait_for_placement(inputs.train)
    if not placement:
        return [Finding("placement", "error", describe_shortage(nodes, inputs.train))]
    storage = inputs.run_dir.parent
    try:
        reports = probe_nodes(nodes, storage, inputs.train)
    except OSError as error:
        return [Finding("storage", "error", f"run.storage: {storage} can't be written: {error.strerror}")]
    used = [report for report in reports if report.node.id in placement and report.memory]
    return [
        _check_placement(inputs, nodes, placement),
        _check_storage(inputs, reports),
        *(check_memory(inputs, used, placement) if used else ()),
        _check_disk(inputs),
        _check_local_disk(inputs, used, placement),
        *_check_compilers(inputs, used),
        *check_precision(inputs, used),
    ]


def _check_placement(inputs: CheckInput, nodes: Sequence[Node], placement: dict[str, int]) -> Finding:
    train = inputs.train
    other_cpus = required_cpus(train) - train.min_workers * train.cpus_per_worker
    message = (
        f"{train.min_workers} worker(s) on {len(placement)} of {len(nodes)} node(s), {other_cpus} CPU for other tasks"
    )
    free = ray.available_resources()
    if free.get("CPU", 0) < required_cpus(train) or (train.use_gpu and free.get("GPU", 0) < train.min_workers):
        return Finding("placement", "warning", f"{message}; other work uses these resources now, the run waits for it")
    return Finding("placement", "ok", message)


def _check_storage(inputs: CheckInput, reports: Sequence[NodeReport]) -> Finding:
    problems = [f"node {report.node.name} {report.problem}" for report in reports if report.problem]
    if problems:
        return Finding("storage", "error", f"run.storage: {'; '.join(problems)}")
    return Finding("storage", "ok", f"all {len(reports)} node(s) can read and write {inputs.run_dir.parent}")


def _check_compilers(inputs: CheckInput, reports: Sequence[NodeReport]) -> Iterator[Finding]:
    """Check for the compilers that torch calls on the nodes of the workers; no finding if it calls none."""
    if not (inputs.train.use_gpu or inputs.train.compile):
        return
    problems = [
        f"node {report.node.name} has no {' and no '.join(report.missing_compilers)} compiler"
        for report in reports
        if report.missing_compilers
    ]
    if problems:
        yield Finding("compilers", "error", f"{'; '.join(problems)}, which torch needs; {INSTALL_COMPILERS}")
    else:
        yield Finding("compilers", "ok", f"all {len(reports)} node(s) have the compilers that torch calls")


def check_precision(inputs: CheckInput, reports: Sequence[NodeReport]) -> Iterator[Finding]:
    """Check that CPU workers are not slowed down by bf16; no finding for GPUs and for fp32."""
    if inputs.train.use_gpu or inputs.train.precision == "fp32":
        return
    slow = [report.node.name for report in reports if not report.is_bf16_fast]
    if slow:
        message = (
            f"the CPU of node {', '.join(slow)} has no instructions for bf16, so train.precision=bf16 takes many times "
            "as long as fp32 there; set train.precision=fp32, which needs more memory"
        )
        yield Finding("precision", "warning", message)
    else:
        yield Finding("precision", "ok", f"the CPUs of all {len(reports)} node(s) are fast in bf16")


def _check_disk(inputs: CheckInput) -> Finding:
    """Check the storage for one checkpoint more than are kept, and for two copies of the model.

    Ray Train deletes an old checkpoint only once the next one is complete, and the model folder is assembled from the
    exported weights.
    """
    train, storage = inputs.train, inputs.run_dir.parent
    model_size = inputs.sizer.compute_size(inputs.lora, train)
    checkpoint = checkpoint_bytes(model_size, train)
    model = model_bytes(model_size, train, is_adapter=inputs.lora is not None)
    num_checkpoints = train.num_checkpoints + 1
    existing = inputs.run_dir.glob("train/checkpoint-*/**/*")
    existing_bytes = sum(path.stat().st_size for path in existing if path.is_file())
    needed = max(0, num_checkpoints * checkpoint - existing_bytes) + 2 * model
    free = shutil.disk_usage(storage).free
    message = (
        f"{num_checkpoints} checkpoint(s) of {format_gib(checkpoint)} and a model of {format_gib(model)} need "
        f"{format_gib(needed)}, {storage} has {format_gib(free)} free"
    )
    if needed > free:
        return Finding("disk", "error", f"{message}; free some space, or lower train.num_checkpoints")
    return Finding("disk", "ok", message)


def _check_local_disk(inputs: CheckInput, reports: Sequence[NodeReport], placement: dict[str, int]) -> Finding:
    """Check the nodes' own disks, which hold the shards until they are moved to the storage."""
    checkpoint = checkpoint_bytes(inputs.sizer.compute_size(inputs.lora, inputs.train), inputs.train)
    for report in reports:
        needed = checkpoint * placement[report.node.id] // inputs.train.min_workers
        if report.problem is None and needed > report.local_disk:
            message = (
                f"node {report.node.name} has {format_gib(report.local_disk)} free for Ray's files, the shards of its "
                f"workers need {format_gib(needed)}; start Ray there with --temp-dir on a larger disk"
            )
            return Finding("local disk", "error", message)
    return Finding("local disk", "ok", f"the shards of a checkpoint ({format_gib(checkpoint)}) fit on the nodes")
