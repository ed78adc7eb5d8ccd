"""Needs of a run + what its nodes have -> whether it fits, and if not, what would."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from instruct_ray.config.schema import LoraConfig
from instruct_ray.config.train import OffloadConfig, TrainConfig
from instruct_ray.training.capacity.findings import CheckInput, Finding
from instruct_ray.training.capacity.memory import MemoryEstimate, estimate_memory, format_gib
from instruct_ray.training.capacity.nodes import NodeReport

# Of a memory: fuller than this is worth a word, since what the estimate leaves out comes on top.
NEARLY_FULL = 0.9
# Of the ways that would fit, those named.
NUM_NAMED = 3
OFFLOAD_ALL = OffloadConfig(optimizer=True, parameters=True)


@dataclass(frozen=True)
class Alternative:
    """A way to train the same data."""

    name: str
    """The overrides that make it."""
    lora: LoraConfig | None
    train: TrainConfig


@dataclass(frozen=True)
class MemoryBudget:
    """What the workers of a run may fill."""

    gpu: int
    """Bytes of the smallest GPU; 0 if none is used, or none tells."""
    tightest_node: NodeReport
    """The node with the least memory for each of its workers."""
    num_workers: int
    """Workers on it."""

    @classmethod
    def for_nodes(cls, facts: Sequence[NodeReport], placed: dict[str, int]) -> "MemoryBudget":
        """For workers placed on nodes."""
        gpus = [size for each in facts for size in each.gpu_memory]
        tightest_node = min(facts, key=lambda each: each.memory / placed[each.node.id])
        return cls(min(gpus, default=0), tightest_node, placed[tightest_node.node.id])

    def on_node(self, needs: MemoryEstimate, train: TrainConfig) -> int:
        """Bytes of the tightest_node node's memory; without GPUs the workers compute there."""
        each = needs.host_total if train.use_gpu else needs.device_total
        # Rank 0 may be there.
        return min(self.num_workers, train.min_workers) * each + needs.export

    def holds(self, needs: MemoryEstimate, train: TrainConfig) -> bool:
        """Whether nothing is short."""
        fits_gpu = not (train.use_gpu and self.gpu) or needs.device_total <= self.gpu
        return fits_gpu and self.on_node(needs, train) <= self.tightest_node.memory


def check_memory(run: CheckInput, facts: Sequence[NodeReport], placed: dict[str, int]) -> Iterator[Finding]:
    """Of nodes that answered."""
    room, needs = MemoryBudget.for_nodes(facts, placed), _needs(run, Alternative("", run.lora, run.train))
    if run.train.use_gpu:
        message = f"a worker needs {format_gib(needs.device_total)} ({_parts(needs.device)})"
        if room.gpu:
            yield _finding(run, room, "GPU memory", message, needs.device_total, room.gpu)
        else:
            yield Finding("GPU memory", "warning", f"{message}; no node tells how much its GPUs have")
    needed = room.on_node(needs, run.train)
    parts = _parts(needs.host if run.train.use_gpu else needs.device)
    parts += f"; once {format_gib(needs.export)} to export"
    message = f"{room.num_workers} worker(s) on {room.tightest_node.node.name} need {format_gib(needed)} (each {parts})"
    yield _finding(run, room, "memory", message, needed, room.tightest_node.memory)


def _finding(run: CheckInput, room: MemoryBudget, check: str, message: str, needed: int, there: int) -> Finding:
    text = f"{message}, {format_gib(there)} are there"
    if needed > there:
        return Finding(check, "error", f"{text}; {_advice(run, room)}")
    if needed > NEARLY_FULL * there:
        return Finding(check, "warning", f"{text}: nearly full")
    return Finding(check, "ok", text)


def _advice(run: CheckInput, room: MemoryBudget) -> str:
    found = []
    for way in _alternatives(run.lora, run.train):
        needs = _needs(run, way)
        if room.holds(needs, way.train):
            total = needs.device_total if way.train.use_gpu else room.on_node(needs, way.train)
            found.append(f"{way.name} ({format_gib(total)})")
    if not found:
        return "no other way of training fits either: smaller data.pack_tokens, a smaller base or larger nodes would"
    return f"would fit: {', or '.join(found[:NUM_NAMED])}"


def _alternatives(lora: LoraConfig | None, train: TrainConfig) -> Iterator[Alternative]:
    """Other ways, those that cost least time first."""
    stages = range(train.zero_stage + 1, 3 if train.compile else 4) if train.min_workers > 1 else ()
    for stage in stages:
        yield Alternative(f"train.zero_stage={stage}", lora, train.model_copy(update={"zero_stage": stage}))
    checkpointed = train.model_copy(update={"activation_checkpointing": True})
    if not train.activation_checkpointing:
        yield Alternative("train.activation_checkpointing=true", lora, checkpointed)
    if train.use_gpu:
        yield from _offloaded(lora, train)
    elif train.min_workers > 1:
        yield Alternative("train.num_workers=1", lora, train.model_copy(update={"num_workers": 1}))
    if lora is None:
        yield Alternative("model.lora={rank: 16}", LoraConfig(), train)
        yield Alternative("model.lora={rank: 16} train.activation_checkpointing=true", LoraConfig(), checkpointed)


def _offloaded(lora: LoraConfig | None, train: TrainConfig) -> Iterator[Alternative]:
    stage = max(1, train.zero_stage)
    offload = train.offload.model_copy(update={"optimizer": True})
    optimizer = train.model_copy(update={"zero_stage": stage, "offload": offload})
    yield Alternative(f"train.zero_stage={stage} train.offload.optimizer=true", lora, optimizer)
    values = {"zero_stage": 3, "offload": OFFLOAD_ALL, "activation_checkpointing": True, "compile": False}
    name = "train.zero_stage=3 train.offload={optimizer: true, parameters: true} train.activation_checkpointing=true"
    yield Alternative(f"{name}{' train.compile=false' if train.compile else ''}", lora, train.model_copy(update=values))


def _needs(run: CheckInput, way: Alternative) -> MemoryEstimate:
    return estimate_memory(run.sizer.size_of(way.lora, way.train), way.train, way.train.min_workers)


def _parts(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {format_gib(size)}" for name, size in sizes.items())
