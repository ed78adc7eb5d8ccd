"""pure: compares the memory that a run needs with what its nodes have, and suggests changes if it does not fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import OffloadConfig, TrainConfig
from instruct_ray.training.capacity.findings import CheckInput, Finding
from instruct_ray.training.capacity.memory import MemoryEstimate, estimate_memory, format_gib
from instruct_ray.training.capacity.nodes import NodeReport

# Above this share of the memory the check warns: the estimate does not cover everything.
NEARLY_FULL = 0.9
# Alternatives that the message lists.
MAX_SUGGESTIONS = 3
OFFLOAD_ALL = OffloadConfig(optimizer=True, parameters=True)


@dataclass(frozen=True)
class Alternative:
    """Another config for training on the same data."""

    overrides: str
    """The config overrides that lead to it."""
    lora: LoraConfig | None
    train: TrainConfig


@dataclass(frozen=True)
class MemoryBudget:
    """The memory that the workers of a run can use."""

    gpu_memory: int | None
    """Bytes of the smallest GPU; None if unknown."""
    tightest_node: NodeReport
    """The node with the least memory per worker."""
    num_workers: int
    """Workers on that node."""

    @classmethod
    def for_nodes(cls, reports: Sequence[NodeReport], placement: dict[str, int]) -> "MemoryBudget":
        """The budget of workers that are placed on these nodes."""
        gpus = [num_bytes for report in reports for num_bytes in report.gpu_memory]
        tightest_node = min(reports, key=lambda report: report.memory / placement[report.node.id])
        return cls(min(gpus, default=None), tightest_node, placement[tightest_node.node.id])

    def node_bytes(self, estimate: MemoryEstimate, train: TrainConfig) -> int:
        """Bytes needed on the tightest node; without GPUs the workers compute in its memory."""
        per_worker = estimate.host_total if train.use_gpu else estimate.device_total
        # Rank 0 may be on this node.
        return min(self.num_workers, train.min_workers) * per_worker + estimate.export

    def fits(self, estimate: MemoryEstimate, train: TrainConfig) -> bool:
        """Whether the memory is large enough; a GPU of unknown size is assumed to be."""
        fits_gpu = not train.use_gpu or self.gpu_memory is None or estimate.device_total <= self.gpu_memory
        return fits_gpu and self.node_bytes(estimate, train) <= self.tightest_node.memory


def check_memory(inputs: CheckInput, reports: Sequence[NodeReport], placement: dict[str, int]) -> Iterator[Finding]:
    """Check GPU and node memory, on nodes that answered."""
    train = inputs.train
    budget, estimate = MemoryBudget.for_nodes(reports, placement), _estimate(inputs, inputs.lora, train)
    if train.use_gpu:
        message = f"a worker needs {format_gib(estimate.device_total)} ({_format_parts(estimate.device)})"
        if budget.gpu_memory is None:
            yield Finding("GPU memory", "warning", f"{message}; the nodes' GPU memory is unknown")
        else:
            yield _judge(inputs, budget, "GPU memory", message, estimate.device_total, budget.gpu_memory)
    needed = budget.node_bytes(estimate, train)
    parts = _format_parts(estimate.host if train.use_gpu else estimate.device)
    message = (
        f"{budget.num_workers} worker(s) on {budget.tightest_node.node.name} need {format_gib(needed)} (each {parts}; "
        f"once {format_gib(estimate.export)} for the export)"
    )
    yield _judge(inputs, budget, "memory", message, needed, budget.tightest_node.memory)


def _judge(inputs: CheckInput, budget: MemoryBudget, check: str, message: str, needed: int, available: int) -> Finding:
    message = f"{message}, {format_gib(available)} are available"
    if needed > available:
        return Finding(check, "error", f"{message}; {_suggest_alternatives(inputs, budget)}")
    if needed > NEARLY_FULL * available:
        return Finding(check, "warning", f"{message}: nearly full")
    return Finding(check, "ok", message)


def _suggest_alternatives(inputs: CheckInput, budget: MemoryBudget) -> str:
    suggestions = []
    for alternative in _alternatives(inputs.lora, inputs.train):
        train = alternative.train
        estimate = _estimate(inputs, alternative.lora, train)
        if budget.fits(estimate, train):
            total = estimate.device_total if train.use_gpu else budget.node_bytes(estimate, train)
            suggestions.append(f"{alternative.overrides} ({format_gib(total)})")
    if not suggestions:
        return "no other setting fits either: use smaller data.pack_tokens, a smaller base model, or larger nodes"
    return f"would fit: {', or '.join(suggestions[:MAX_SUGGESTIONS])}"


def _alternatives(lora: LoraConfig | None, train: TrainConfig) -> Iterator[Alternative]:
    """Other configs, ordered by how much they slow training down."""
    stages = range(train.zero_stage + 1, 3 if train.compile else 4) if train.min_workers > 1 else ()
    for stage in stages:
        yield Alternative(f"train.zero_stage={stage}", lora, train.model_copy(update={"zero_stage": stage}))
    checkpointed = train.model_copy(update={"activation_checkpointing": True})
    if not train.activation_checkpointing:
        yield Alternative("train.activation_checkpointing=true", lora, checkpointed)
    if train.use_gpu:
        yield from _offloading_alternatives(lora, train)
    elif train.min_workers > 1:
        yield Alternative("train.num_workers=1", lora, train.model_copy(update={"num_workers": 1}))
    if lora is None:
        yield Alternative("model.lora={rank: 16}", LoraConfig(), train)
        yield Alternative("model.lora={rank: 16} train.activation_checkpointing=true", LoraConfig(), checkpointed)


def _offloading_alternatives(lora: LoraConfig | None, train: TrainConfig) -> Iterator[Alternative]:
    stage = max(1, train.zero_stage)
    offload = train.offload.model_copy(update={"optimizer": True})
    offloaded = train.model_copy(update={"zero_stage": stage, "offload": offload})
    yield Alternative(f"train.zero_stage={stage} train.offload.optimizer=true", lora, offloaded)
    values = {"zero_stage": 3, "offload": OFFLOAD_ALL, "activation_checkpointing": True, "compile": False}
    overrides = (
        "train.zero_stage=3 train.offload={optimizer: true, parameters: true} train.activation_checkpointing=true"
        f"{' train.compile=false' if train.compile else ''}"
    )
    yield Alternative(overrides, lora, train.model_copy(update=values))


def _estimate(inputs: CheckInput, lora: LoraConfig | None, train: TrainConfig) -> MemoryEstimate:
    return estimate_memory(inputs.sizer.compute_size(lora, train), train, train.min_workers)


def _format_parts(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {format_gib(size)}" for name, size in sizes.items())
