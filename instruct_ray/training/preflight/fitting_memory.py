"""Needs of a run + what its nodes have -> whether it fits, and if not, what would."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from instruct_ray.config import LoraConfig, OffloadConfig, TrainConfig
from instruct_ray.training.preflight.memory import Needs, gib, needs_of
from instruct_ray.training.preflight.nodes import Facts
from instruct_ray.training.preflight.report import Finding, Job

# Of a memory: fuller than this is worth a word, since what the estimate leaves out comes on top.
NEARLY_FULL = 0.9
# Of the ways that would fit, those named.
NUM_NAMED = 3
OFFLOAD_ALL = OffloadConfig(optimizer=True, parameters=True)


@dataclass(frozen=True)
class Way:
    """A way to train the same data."""

    name: str
    """The overrides that make it."""
    lora: LoraConfig | None
    train: TrainConfig


@dataclass(frozen=True)
class Room:
    """What the workers of a run may fill."""

    gpu: int
    """Bytes of the smallest GPU; 0 if none is used, or none tells."""
    fullest: Facts
    """The node with the least memory for each of its workers."""
    num_workers: int
    """Workers on it."""

    @classmethod
    def of(cls, facts: Sequence[Facts], placed: dict[str, int]) -> "Room":
        """For workers placed on nodes."""
        gpus = [size for each in facts for size in each.gpu_memory]
        fullest = min(facts, key=lambda each: each.memory / placed[each.node.id])
        return cls(min(gpus, default=0), fullest, placed[fullest.node.id])

    def on_node(self, needs: Needs, train: TrainConfig) -> int:
        """Bytes of the fullest node's memory; without GPUs the workers compute there."""
        each = needs.host_total if train.use_gpu else needs.device_total
        # Rank 0 may be there.
        return min(self.num_workers, train.min_workers) * each + needs.export

    def holds(self, needs: Needs, train: TrainConfig) -> bool:
        """Whether nothing is short."""
        fits_gpu = not (train.use_gpu and self.gpu) or needs.device_total <= self.gpu
        return fits_gpu and self.on_node(needs, train) <= self.fullest.memory


def check_memory(job: Job, facts: Sequence[Facts], placed: dict[str, int]) -> Iterator[Finding]:
    """Of nodes that answered."""
    room, needs = Room.of(facts, placed), _needs(job, Way("", job.lora, job.train))
    if job.train.use_gpu:
        said = f"a worker needs {gib(needs.device_total)} ({_parts(needs.device)})"
        if room.gpu:
            yield _finding(job, room, "GPU memory", said, needs.device_total, room.gpu)
        else:
            yield Finding("GPU memory", "note", f"{said}; no node tells how much its GPUs have")
    needed = room.on_node(needs, job.train)
    parts = _parts(needs.host if job.train.use_gpu else needs.device)
    parts += f"; once {gib(needs.export)} to export"
    said = f"{room.num_workers} worker(s) on {room.fullest.node.name} need {gib(needed)} (each {parts})"
    yield _finding(job, room, "memory", said, needed, room.fullest.memory)


def _finding(job: Job, room: Room, subject: str, said: str, needed: int, there: int) -> Finding:
    text = f"{said}, {gib(there)} are there"
    if needed > there:
        return Finding(subject, "refused", f"{text}; {_advice(job, room)}")
    if needed > NEARLY_FULL * there:
        return Finding(subject, "note", f"{text}: nearly full")
    return Finding(subject, "fine", text)


def _advice(job: Job, room: Room) -> str:
    found = []
    for way in _ways(job.lora, job.train):
        needs = _needs(job, way)
        if room.holds(needs, way.train):
            total = needs.device_total if way.train.use_gpu else room.on_node(needs, way.train)
            found.append(f"{way.name} ({gib(total)})")
    if not found:
        return "no other way of training fits either: smaller data.pack_tokens, a smaller base or larger nodes would"
    return f"would fit: {', or '.join(found[:NUM_NAMED])}"


def _ways(lora: LoraConfig | None, train: TrainConfig) -> Iterator[Way]:
    """Other ways, those that cost least time first."""
    stages = range(train.zero_stage + 1, 3 if train.compile else 4) if train.min_workers > 1 else ()
    for stage in stages:
        yield Way(f"train.zero_stage={stage}", lora, train.model_copy(update={"zero_stage": stage}))
    checkpointed = train.model_copy(update={"activation_checkpointing": True})
    if not train.activation_checkpointing:
        yield Way("train.activation_checkpointing=true", lora, checkpointed)
    if train.use_gpu:
        yield from _offloaded(lora, train)
    elif train.min_workers > 1:
        yield Way("train.num_workers=1", lora, train.model_copy(update={"num_workers": 1}))
    if lora is None:
        yield Way("model.lora={rank: 16}", LoraConfig(), train)
        yield Way("model.lora={rank: 16} train.activation_checkpointing=true", LoraConfig(), checkpointed)


def _offloaded(lora: LoraConfig | None, train: TrainConfig) -> Iterator[Way]:
    stage = max(1, train.zero_stage)
    offload = train.offload.model_copy(update={"optimizer": True})
    optimizer = train.model_copy(update={"zero_stage": stage, "offload": offload})
    yield Way(f"train.zero_stage={stage} train.offload.optimizer=true", lora, optimizer)
    values = {"zero_stage": 3, "offload": OFFLOAD_ALL, "activation_checkpointing": True, "compile": False}
    name = "train.zero_stage=3 train.offload={optimizer: true, parameters: true} train.activation_checkpointing=true"
    yield Way(f"{name}{' train.compile=false' if train.compile else ''}", lora, train.model_copy(update=values))


def _needs(job: Job, way: Way) -> Needs:
    return needs_of(job.shaper.shapes(way.lora, way.train), way.train, way.train.min_workers)


def _parts(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {gib(size)}" for name, size in sizes.items())
