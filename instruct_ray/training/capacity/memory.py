"""Shapes of a model + how it is trained -> bytes: in the memory that computes (a GPU's, or without one the node's), in
the node's memory beside a GPU, in a checkpoint. Pure.

Per rank, with P parameters of which S are trained, b bytes each (2 in bf16, 4 in fp32) and W ranks:

    weights     b P, at stage 3 b P / W and what is gathered at a time
    gradients   b S, from stage 2 on b S / W, and DeepSpeed's bucket
    optimizer   12 S: fp32 master weights and AdamW's two moments, from stage 1 on 12 S / W; 8 S in fp32 at stage 0
    update      4 S more while the weights are updated (fp32 gradients), from stage 1 on 4 S / W; not in fp32 at stage 0
    activations of one pack (activations.py); they are gone when the weights are updated

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 5, and the
buffers of DeepSpeed 0.19 (runtime/zero/stage_1_and_2.py, stage3.py).
"""

from dataclasses import dataclass

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.distributed.optimizer import uses_torch_optimizer

GIB = 2**30
BYTES = {"bf16": 2, "fp32": 4}
# Of a parameter in NF4 with its scales quantized too: 4.127 bits (Dettmers et al. 2023, section 3).
NF4_BYTES = 0.516
# DeepSpeed's defaults, in elements: its bucket for reducing gradients, and what stage 3 keeps gathered.
BUCKET_ELEMENTS = 500_000_000
MAX_LIVE_ELEMENTS = 1_000_000_000
# What a worker holds before it has a model: Python, torch, transformers, Ray, DeepSpeed. An assumption; the sum is held
# against what workers take (tests/training/capacity/test_memory_measured.py).
PROCESS_BYTES = int(0.8 * GIB)
# CUDA context, NCCL's buffers and cuBLAS' workspace. Not measured; usual figures.
GPU_RESERVE_BYTES = int(1.5 * GIB)


@dataclass(frozen=True)
class ModelSize:
    """What the figures depend on."""

    num_parameters: int
    num_trained: int
    """Parameters that are trained."""
    activation_bytes: int
    """Of one pack, at most."""
    num_quantized: int = 0
    """Frozen parameters that are kept in 4 bits."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank, by what they are for."""

    device: dict[str, int]
    """Where it computes."""
    host: dict[str, int]
    """In the node's memory beside it."""
    export: int
    """In the memory of rank 0's node more than before: the model is gathered there, written and read back."""

    @property
    def device_total(self) -> int:
        return sum(self.device.values())

    @property
    def host_total(self) -> int:
        return sum(self.host.values())


def estimate_memory(shapes: ModelSize, train: TrainConfig, world_size: int) -> MemoryEstimate:
    """What each rank of a run holds at its tightest_node."""
    size, stage = BYTES[train.precision], train.zero_stage
    plain = shapes.num_parameters - shapes.num_quantized
    optimizer = _optimizer_bytes(shapes, train) // (world_size if stage else 1)
    update = 0 if uses_torch_optimizer(train) else 4 * shapes.num_trained // (world_size if stage else 1)
    gradients = size * shapes.num_trained // (world_size if stage >= 2 else 1) + _bucket_bytes(train)
    weights = (size * plain + int(NF4_BYTES * shapes.num_quantized)) // (world_size if stage == 3 else 1)
    device = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
    host = {"process": PROCESS_BYTES}
    if stage == 3:
        device["gathered weights"] = size * min(shapes.num_parameters, MAX_LIVE_ELEMENTS)
    if train.offload.parameters:
        host["offloaded weights"] = device.pop("weights")
    if train.offload.optimizer:
        # Its gradients live beside it all the time.
        host["offloaded optimizer"] = device.pop("optimizer") + update
        update = 0
    device["activations, or the update"] = max(shapes.activation_bytes, update)
    if not train.use_gpu:
        return MemoryEstimate(device | host, {}, _export_bytes(shapes, train))
    device["CUDA and NCCL"] = GPU_RESERVE_BYTES
    if stage < 3:
        # Weights are read into the node's memory first, and freed when the next things come.
        host["weights while they are loaded"] = size * shapes.num_parameters
    return MemoryEstimate(device, host, _export_bytes(shapes, train))


def checkpoint_bytes(shapes: ModelSize, train: TrainConfig) -> int:
    """All ranks' shards of one checkpoint: what is trained (but at stage 3, where master weights stand for it), master
    weights and moments. Tied embeddings that are frozen come on top: DeepSpeed leaves them in by their second name."""
    weights = 0 if train.zero_stage == 3 else BYTES[train.precision] * shapes.num_trained
    return weights + _optimizer_bytes(shapes, train)


def model_bytes(shapes: ModelSize, train: TrainConfig, *, is_adapter: bool) -> int:
    """The exported model or adapter."""
    return BYTES[train.precision] * (shapes.num_trained if is_adapter else shapes.num_parameters)


def _optimizer_bytes(shapes: ModelSize, train: TrainConfig) -> int:
    return (8 if uses_torch_optimizer(train) else 12) * shapes.num_trained


def _export_bytes(shapes: ModelSize, train: TrainConfig) -> int:
    read_back = BYTES[train.precision] * shapes.num_parameters
    if train.use_gpu and train.zero_stage < 3:
        # Where the weights lay while they were loaded.
        read_back = 0
    is_copied = train.use_gpu or train.zero_stage == 3
    return read_back + (BYTES[train.precision] * shapes.num_trained if is_copied else 0)


def _bucket_bytes(train: TrainConfig) -> int:
    """Allocated whole, however small the model; on a GPU twice where reducing overlaps with the backward pass, at
    stages 1 and 2. On a CPU it lies on pages that were used before, so that all of it is memory there as well."""
    if train.zero_stage == 0:
        return 0
    return BYTES[train.precision] * BUCKET_ELEMENTS * (2 if train.use_gpu and train.zero_stage < 3 else 1)


def format_gib(size: int) -> str:
    """Bytes in words."""
    return f"{size / GIB:.2f} GiB" if size < 10 * GIB else f"{size / GIB:.0f} GiB"
