"""pure: estimates the memory of a rank and the size of a checkpoint, from the size of the model and the config.

Device memory is a GPU's, or without GPUs the node's; host memory is the node's memory if there are GPUs. Per rank, with
P parameters of which S are trainable, b bytes each (2 in bf16, 4 in fp32) and W ranks:

    weights     b P; at stage 3 b P / W and the layers that are gathered at a time
    gradients   4 S, in fp32 whatever the weights; from stage 2 on 4 S / W; and DeepSpeed's buffers for reducing them
    optimizer   12 S: fp32 master weights and AdamW's two moments; from stage 1 on 12 S / W; in fp32 at stage 0 8 S
    update      4 S / W more during the weight update from stage 1 on (this rank's share of the gradients)
    activations of one pack (activations.py), which are freed before the weight update

Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 5, and
the buffers of DeepSpeed 0.19 (runtime/zero/stage_1_and_2.py, stage3.py).
"""

from dataclasses import dataclass

from instruct_ray.config.train import TrainConfig
from instruct_ray.training.distributed.deepspeed_config import bucket_elements, uses_torch_optimizer

GIB = 2**30
BYTES_PER_PARAMETER = {"bf16": 2, "fp32": 4}
# A parameter in NF4 with quantized scales takes 4.127 bits (Dettmers et al. 2023, section 3).
NF4_BYTES = 0.516
# DeepSpeed's default, in elements: what stage 3 keeps gathered.
MAX_LIVE_ELEMENTS = 1_000_000_000
# A worker before it has a model: Python, torch, transformers, Ray, DeepSpeed. An assumption; the total is compared with
# real workers in tests/training/capacity/test_memory_measured.py.
PROCESS_BYTES = int(0.8 * GIB)
# CUDA context, NCCL's buffers and cuBLAS's workspace. Not measured; typical values.
GPU_RESERVE_BYTES = int(1.5 * GIB)


@dataclass(frozen=True)
class ModelSize:
    """The sizes that memory depends on."""

    num_parameters: int
    num_trainable: int
    """Parameters that are trained."""
    activation_bytes: int
    """Peak memory for computing one pack, besides weights and gradients."""
    num_quantized: int = 0
    """Frozen parameters that are kept in 4 bits."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank, by purpose."""

    device: dict[str, int]
    """In the memory that computes."""
    host: dict[str, int]
    """In the node's memory, if the device is a GPU."""
    export: int
    """More in the memory of rank 0's node during the export: the model is gathered, written and read back there."""

    @property
    def device_total(self) -> int:
        """Bytes of device memory."""
        return sum(self.device.values())

    @property
    def host_total(self) -> int:
        """Bytes of host memory."""
        return sum(self.host.values())


def estimate_memory(size: ModelSize, train: TrainConfig, world_size: int) -> MemoryEstimate:
    """Estimate the peak memory of each rank of a run."""
    num_bytes, stage = BYTES_PER_PARAMETER[train.precision], train.zero_stage
    num_unquantized = size.num_parameters - size.num_quantized
    optimizer = _optimizer_bytes(size, train) // (world_size if stage else 1)
    update = 4 * size.num_trainable // world_size if stage else 0
    gradients = 4 * size.num_trainable // (world_size if stage >= 2 else 1) + _bucket_bytes(train, size.num_trainable)
    weights = (num_bytes * num_unquantized + int(NF4_BYTES * size.num_quantized)) // (world_size if stage == 3 else 1)
    device = {"weights": weights, "gradients": gradients, "optimizer": optimizer}
    host = {"process": PROCESS_BYTES}
    if stage == 3:
        device["gathered weights"] = num_bytes * min(size.num_parameters, MAX_LIVE_ELEMENTS)
    if train.offload.parameters:
        host["offloaded weights"] = device.pop("weights")
    if train.offload.optimizer:
        # Its fp32 gradients stay in host memory between updates.
        host["offloaded optimizer"] = device.pop("optimizer") + update
        update = 0
    device["activations or weight update"] = max(size.activation_bytes, update)
    if not train.use_gpu:
        return MemoryEstimate(device | host, {}, _export_bytes(size, train))
    device["CUDA and NCCL"] = GPU_RESERVE_BYTES
    if stage < 3:
        # Weights are first read into host memory, which the allocator reuses later.
        host["weights while loading"] = num_bytes * size.num_parameters
    return MemoryEstimate(device, host, _export_bytes(size, train))


def checkpoint_bytes(size: ModelSize, train: TrainConfig) -> int:
    """Size of a checkpoint, with the shards of all ranks.

    It holds trained weights (at stage 3 only as master weights), master weights and moments. DeepSpeed also writes
    frozen embeddings if they are tied, under their second name; they are not counted.
    """
    weights = 0 if train.zero_stage == 3 else BYTES_PER_PARAMETER[train.precision] * size.num_trainable
    return weights + _optimizer_bytes(size, train)


def model_bytes(size: ModelSize, train: TrainConfig, *, is_adapter: bool) -> int:
    """Size of the exported model or adapter."""
    return BYTES_PER_PARAMETER[train.precision] * (size.num_trainable if is_adapter else size.num_parameters)


def format_gib(num_bytes: int) -> str:
    """Format a number of bytes as GiB."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes < 10 * GIB else f"{num_bytes / GIB:.0f} GiB"


def _optimizer_bytes(size: ModelSize, train: TrainConfig) -> int:
    return (8 if uses_torch_optimizer(train) else 12) * size.num_trainable


def _export_bytes(size: ModelSize, train: TrainConfig) -> int:
    num_bytes = BYTES_PER_PARAMETER[train.precision]
    # Read back into the memory that held the weights while loading, where there was such memory.
    read_back = 0 if train.use_gpu and train.zero_stage < 3 else num_bytes * size.num_parameters
    is_copied = train.use_gpu or train.zero_stage == 3
    return read_back + (num_bytes * size.num_trainable if is_copied else 0)


def _bucket_bytes(train: TrainConfig, num_trainable: int) -> int:
    """Size of DeepSpeed's buffers for reducing gradients: a bucket, and its copy while it is reduced, both in fp32.

    On a GPU at stages 1 and 2 there are two buckets, since reducing overlaps with the backward pass.
    """
    if train.zero_stage == 0:
        return 0
    num_buffers = 3 if train.use_gpu and train.zero_stage < 3 else 2
    return num_buffers * 4 * bucket_elements(train, num_trainable)
